# SPDX-License-Identifier: Apache-2.0
"""A policy as a folder for transformers' `custom_generate`, for users who have transformers and no SpecKV.

transformers copies only `generate.py` and its relative imports into its cache. So the folder holds flat copies of
SpecKV's modules (`speckv.export.bundle`), and the policy's two files inside one more module.
"""

import json
from base64 import b64encode
from collections.abc import Collection, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from speckv import __version__
from speckv.errors import ConfigError
from speckv.export.bundle import Bundle, bundle, flat_name
from speckv.files import write_atomically
from speckv.runtime import Policy
from speckv.runtime.policy import class_of
from speckv.runtime.state import Storable
from speckv.runtime.storage import CARD, WEIGHTS

FOLDER = "custom_generate"
"""Name of the subfolder that transformers expects."""
EMBEDDED = "speckv.integrations.transformers.embedded"
DATA = "policy_data"
REQUIREMENTS = ("numpy>=2", "torch>=2.6", "transformers>=5.23", "transformers<6")
"""As in pyproject.toml; transformers reads one bound a line."""
_HEADER = "# SPDX-License-Identifier: Apache-2.0"
_GENERATE = '''{header}
"""Assisted generation under the SpecKV policy {name}; see README.md. Written by SpecKV {version}."""

{imports}

embedded = Embedded(FILES, kinds={{{kinds}}})


def generate(inputs=None, *, model, assistant_model=None, **options):
    """Generates with `assistant_model` drafting as many tokens as the policy chooses; all else is as in `generate`."""
    return embedded.generate(model, inputs, assistant_model, **options)


if False:  # transformers copies the files that such lines name, wherever they stand
{manifest}
'''


def write_custom_generate(policy: Policy, folder: Path) -> list[Path]:
    """Writes the folder for `generate(..., custom_generate=FOLDER)`: modules, the policy's two files, and a README.

    Raises:
        CheckpointError: if the policy cannot be stored, or no installed package defines its kind.
        ConfigError: if modules of its kind cannot be copied, or need more than NumPy, PyTorch and transformers.
    """
    policy.save(folder)
    kinds = _kinds(policy.controller)
    copied = _copied(kinds)
    modules = {
        **copied.sources,
        DATA: _data([folder / CARD, folder / WEIGHTS]),
        "generate": _generate(policy, kinds, [*copied.sources, DATA]),
    }
    files = {f"{name}.py": text for name, text in modules.items()}
    files["requirements.txt"] = "\n".join([*REQUIREMENTS, ""])
    for name, text in files.items():
        write_atomically(folder / FOLDER / name, text)
    write_atomically(folder / "README.md", _readme(policy, len(copied.sources)))
    return [folder / CARD, folder / WEIGHTS, folder / "README.md", *(folder / FOLDER / name for name in sorted(files))]


def _kinds(controller: Any) -> list[type[Storable]]:
    """Classes of a controller and of those that it wraps."""
    found = [class_of(controller.kind)]
    while (controller := getattr(controller, "inner", None)) is not None:
        kind = class_of(controller.kind)
        found += [kind] if kind not in found else []
    return found


def _copied(kinds: Sequence[type[Storable]]) -> Bundle:
    copied = bundle({EMBEDDED, *(kind.__module__ for kind in kinds)})
    allowed = {name.rstrip("<>=.0123456789") for name in REQUIREMENTS}
    if extra := copied.libraries - allowed:
        raise ConfigError(
            f"Expected a policy that runs with {sorted(allowed)} alone, but kind {kinds[0].kind!r} also imports "
            f"{sorted(extra)}. Export it as a policy (--to policy), and install SpecKV where it runs."
        )
    return copied


def _generate(policy: Policy, kinds: Sequence[type[Storable]], modules: Collection[str]) -> str:
    imports = {
        f"from .{DATA} import FILES",
        *(f"from .{flat_name(kind.__module__)} import {kind.__name__}" for kind in kinds),
        f"from .{flat_name(EMBEDDED)} import Embedded",
    }
    return _GENERATE.format(
        header=_HEADER,
        name=json.dumps(policy.name).replace('"""', ""),
        version=__version__,
        imports="\n".join(sorted(imports)),
        kinds=", ".join(f'"{kind.kind}": {kind.__name__}' for kind in kinds),
        manifest="\n".join(f"    from .{name} import *" for name in sorted(modules)),
    )


def _data(files: Sequence[Path]) -> str:
    lines = [_HEADER, '"""The policy\'s two files, in base 64."""', "", "FILES = {"]
    for path in files:
        content = (f'        "{line}"' for line in wrap(b64encode(path.read_bytes()).decode(), 100))
        lines += [f'    "{path.name}": (', *content, "    ),"]
    return "\n".join([*lines, "}", ""])


def _readme(policy: Policy, modules: int) -> str:
    known = policy.trained_on
    inside = policy.granularity == "token"
    rows = {
        "decides": "before each step, and behind each drafted token" if inside else "before each step",
        "goes on learning": "yes, from request to request, until the process ends" if policy.learns else "no",
        "tokens drafted at most": policy.gamma_max,
        "tokens drafted as a fallback": ", ".join(f"{g} ({c})" for c, g in policy.fallback.items()) or 0,
        "target": known.get("target", "unknown"),
        "draft": known.get("draft", "unknown"),
        "vocabulary": known.get("vocab_size", "unknown"),
        "compressions of the target": ", ".join(policy.compressions),
        "cost table": known.get("cost", "unknown"),
    }
    return _README.format(
        name=policy.name.replace("`", "'"),
        default=policy.compressions[0],
        rows="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        version=__version__,
        modules=modules,
        needs=", ".join(REQUIREMENTS),
    )


_README = """---
library_name: transformers
license: apache-2.0
tags:
- custom_generate
---

# Assisted generation under the SpecKV policy `{name}`

How many tokens the draft proposes at each step is chosen by a trained policy. Verification is transformers' own: greedy
text is the target's, token by token, and sampled text has its distribution. SpecKV need not be installed.

```python
target.generate(**inputs, custom_generate="FOLDER", trust_remote_code=True, assistant_model=draft)
```

FOLDER is this folder, or a hub repository that holds its content. `custom_generate/` may also lie in the target's own
repository: a target loaded with `trust_remote_code=True` then needs `generate(**inputs, assistant_model=draft)` alone.
Two options are the policy's: `compression`, of the target ({default!r} by default), and `cost_ratio`, the time of one
draft pass over that of one target pass.

One prompt a call, decoder-only models of one tokenizer, greedy or sampled, with any logits processors and stopping
criteria whose state can be deep-copied. Several threads may generate with one target. Batches, beams, several texts, a
second tokenizer, classifier-free guidance, and virtual tokens of PEFT are refused.

| the policy | |
|---|---|
{rows}

With a target of another vocabulary, or signals that cannot be, the fallback is drafted; a warning is logged the first
time for each reason.

| file | |
|---|---|
| `custom_generate/policy_data.py` | the policy; its hash and test vectors are checked at the first call |
| `policy.json`, `policy.safetensors` | the same, as SpecKV reads it; `custom_generate` does not look here |
| `custom_generate/generate.py` | what transformers calls |
| {modules} other modules there | copied from SpecKV {version}, with their imports made relative |

Needs Python 3.11 and {needs}.

Licence: Apache-2.0, https://www.apache.org/licenses/LICENSE-2.0. Modules whose names begin neither with `speckv` nor
with `agents`, if there are any, are under the licence of the package that they come from.
"""
