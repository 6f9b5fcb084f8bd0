# SPDX-License-Identifier: Apache-2.0
"""Python blocks of pages that are run as they stand, each in a folder of its own; tables that must be whole."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.docs_check import python_in
from speckv.agents.registry import AGENTS

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = {
    f"{page} {number}": code
    for page in ("README.md", "docs/environments.md", "docs/evaluation.md")
    for number, code in enumerate(python_in((ROOT / page).read_text(encoding="utf-8")))
}
NEEDS_MODELS = "target.generate"


@pytest.mark.parametrize("name", [name for name, code in BLOCKS.items() if NEEDS_MODELS not in code])
def test_a_block_runs(name: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS[name]], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_table_of_controllers_is_whole() -> None:
    table = (ROOT / "docs" / "controllers.md").read_text(encoding="utf-8").partition("## Baselines")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row)) == sorted([*AGENTS, "own"])
