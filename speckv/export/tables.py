# SPDX-License-Identifier: Apache-2.0
"""Settings files with one gamma a batch, for serving libraries that cannot run a policy, each with a README.md."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from speckv.errors import ConfigError
from speckv.export.compiled import CompiledTable
from speckv.files import canonical_json, write_atomically
from speckv.runtime import Policy

README = "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Provenance of a table: policy, compression of the target, name of the cost table, number of test prompts."""

    policy: Policy
    compression: str
    cost: str
    prompts: int

    @property
    def draft(self) -> str:
        """Id of the draft model in the recordings."""
        return str(self.policy.trained_on.get("draft", "DRAFT"))

    @property
    def target(self) -> str:
        """Id of the target model in the recordings."""
        return str(self.policy.trained_on.get("target", "TARGET"))


class Range(NamedTuple):
    """Batches from `first` to `last` that share a gamma; the last range ends with the largest measured batch."""

    first: int
    last: int
    gamma: int


def ranges(table: CompiledTable) -> list[Range]:
    """Batches from 1 up, each with the gamma of the nearest measured batch; ties go to the smaller.

    >>> ranges(CompiledTable(gammas={1: 5, 4: 3, 16: 3, 32: 0}, loss={}))
    [Range(first=1, last=2, gamma=5), Range(first=3, last=24, gamma=3), Range(first=25, last=32, gamma=0)]
    """
    measured = sorted(table.gammas)
    lasts = [*((a + b) // 2 for a, b in pairwise(measured)), measured[-1]]
    found: list[Range] = []
    for batch, last in zip(measured, lasts, strict=True):
        gamma = table.gammas[batch]
        if found and found[-1].gamma == gamma:
            found[-1] = found[-1]._replace(last=last)
        else:
            found.append(Range(found[-1].last + 1 if found else 1, last, gamma))
    return found


def write_vllm(table: CompiledTable, origin: Origin, folder: Path) -> list[Path]:
    """Writes `speculative_config.json`, for `vllm serve --speculative-config`."""
    spans = ranges(table)
    config = {
        "method": "draft_model",
        "model": origin.draft,
        "num_speculative_tokens": _largest(table, origin),
        "num_speculative_tokens_per_batch_size": [list(span) for span in spans],
    }
    command = f'vllm serve {origin.target} --speculative-config "$(cat speculative_config.json)"'
    note = (
        "The last gamma also serves batches beyond its range. Change `method` and `model` for another kind of draft, "
        "but then the numbers were tuned for something else."
    )
    tested = "vLLM 0.32 decoded on a CPU with such a table of two ranges. No time was measured."
    return _write(folder, "speculative_config.json", config, table, origin, "vLLM", [command, note, tested])


def write_sglang(table: CompiledTable, origin: Origin, folder: Path) -> list[Path]:
    """Writes `adaptive.json`, for `--speculative-adaptive-config` of SGLang.

    A batch takes the entry with the greatest key that is not above it; an entry with one candidate never changes.
    """
    largest = _largest(table, origin)
    config = {str(span.first): {"candidate_steps": [span.gamma]} for span in ranges(table)}
    command = (
        f"python -m sglang.launch_server --model-path {origin.target} --speculative-algorithm EAGLE3 \\\n"
        f"  --speculative-draft-model-path EAGLE_HEAD --speculative-eagle-topk 1 --speculative-num-steps {largest} \\\n"
        f"  --speculative-num-draft-tokens {largest + 1} \\\n"
        "  --speculative-adaptive --speculative-adaptive-config adaptive.json"
    )
    note = (
        "SGLang adapts EAGLE and EAGLE3 drafts only (0.5.23), with topk 1. The policy was trained on another kind "
        "of draft, so train one on recordings of yours where the two differ much."
    )
    tested = "Keys and meaning were read in SGLang 0.5.23. No server was started with it."
    return _write(folder, "adaptive.json", config, table, origin, "SGLang", [command, note, tested])


def _largest(table: CompiledTable, origin: Origin) -> int:
    largest = max(table.gammas.values())
    if largest < 1:
        raise ConfigError(
            f"Expected a policy that gains by drafting, but compiled down {origin.policy.name!r} drafts nothing for "
            f"{origin.compression} on {origin.cost}. Decode without a draft there."
        )
    return largest


def _write(
    folder: Path,
    name: str,
    config: dict[str, Any],
    table: CompiledTable,
    origin: Origin,
    library: str,
    texts: list[str],
) -> list[Path]:
    command, note, tested = texts
    losses = {batch: "not known" if loss is None else f"{loss:.1%}" for batch, loss in table.loss.items()}
    rows = [f"| {batch} | {gamma} | {losses[batch]} |" for batch, gamma in sorted(table.gammas.items())]
    if len(table.gammas) == 1:
        rows += ["", "The cost table was measured at one batch only, so every batch gets that one's gamma."]
    lines = [
        f"# {origin.policy.name} for {library}",
        "",
        f"`{name}` is the SpecKV policy `{origin.policy.name}` compiled down to one gamma a batch. "
        f"Trained on: target {origin.target}, draft {origin.draft}; here for a target in {origin.compression}.",
        "",
        "| batch | gamma | lost |",
        "|---|---|---|",
        *rows,
        "",
        f"Lost, of the policy's tokens a second: replay of {origin.prompts} test prompts on the cost table "
        f"`{origin.cost}`. It holds for that pair and that table; nothing was timed inside {library}.",
        "",
        "```",
        command,
        "```",
        "",
        note,
        "",
        f"Tested: {tested}",
        "",
    ]
    write_atomically(folder / name, canonical_json(config))
    write_atomically(folder / README, "\n".join(lines))
    return [folder / name, folder / README]
