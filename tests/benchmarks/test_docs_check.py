# SPDX-License-Identifier: Apache-2.0
"""The check of commands and code on the pages finds what is wrong, and only that."""

import pytest

from benchmarks.docs_check import commands_in, faults

PAGE = """# A page

```bash
pip install -e . && speckv train agent=ppo   # a comment
speckv decode "A prompt, with commas" \\
    model.folder=FOLDER
vllm serve TARGET --config '{"a": 1,
    "b": 2}'
```

Say `speckv evaluate agents=[svip] cost=cpu-2core`, or see `speckv.types`.

```python
from speckv.envs import GammaSelectionEnv
```
"""


def test_a_right_page_has_no_faults() -> None:
    assert len(list(commands_in(PAGE))) == 5
    assert faults(PAGE) == []


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("speckv train agent=pop", "Expected agent to be one of"),
        ("speckv train agent.lr=1", "Unknown setting 'agent.lr'"),
        ("speckv trian agent=ppo", "no command 'trian'"),
        ("speckv evaluate agents=[svip] controler=x", "Unknown setting 'controler'"),
        ("speckv export RUN --too vllm", "unrecognized arguments"),
        ("python evaluate.py num_resample=3", "Unknown setting"),
        ("python -m benchmarks.env_throughput --no-such-option 3", "has no --no-such-option"),
        ("python examples/none.py", "no script"),
        ("make no-such-target", "No rule to make target"),
        ("spekcv train", "unknown program"),
    ],
)
def test_a_wrong_command_is_found(command: str, fault: str) -> None:
    (found,) = faults(f"text\n\n```bash\n{command}\n```\n")
    assert fault in found


@pytest.mark.parametrize("code", ["from speckv.envs import NoSuchEnv", "import speckv.nothing", "x = ("])
def test_wrong_python_is_found(code: str) -> None:
    assert len(faults(f"```python\n{code}\n```\n")) == 1
