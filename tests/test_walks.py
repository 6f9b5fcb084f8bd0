# SPDX-License-Identifier: Apache-2.0
"""The quickstarts, followed to the letter in an empty folder with an installed wheel.

Commands are the lines of `bash` blocks. A `python` block that begins with a comment `# NAME.py` is saved as that file;
other ones are run. Placeholders of the engineer's page are a tiny pair with random weights.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.docs_check import BLOCK
from tests.fakes import save_tiny, tiny_qwen
from tests.fakes_wheel import Builder, wheel_environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = ("pip ", "tensorboard ")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Builder(tmp_path_factory.mktemp("built")).installed()


def walk(page: str, folder: Path, site: Path, filled_in: Mapping[str, str]) -> list[str]:
    """Follows a page; returns what each step printed."""
    environment = {**wheel_environment(site), "PATH": f"{site / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    printed = []
    for block in BLOCK.finditer((ROOT / "docs" / page).read_text(encoding="utf-8")):
        code = block["code"]
        for word, value in filled_in.items():
            code = re.sub(rf"\b{word}\b", value, code)
        name = re.match(r"# (\w+\.\w+)\n", code)
        if block["language"] == "python" and name:
            (folder / name[1]).write_text(code, encoding="utf-8")
        elif block["language"] == "python":
            printed.append(follow([sys.executable, "-c", code], folder, environment))
        elif block["language"] == "bash":
            for line in code.splitlines():
                if line and not line.startswith(SKIPPED):
                    printed.append(follow(["bash", "-c", line], folder, environment))
    return printed


def follow(command: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-500:]}\n{done.stderr[-2000:]}"
    return done.stdout + done.stderr


def test_the_researchers_walk(site: Path, tmp_path: Path) -> None:
    printed = "\n".join(walk("quickstart-researcher.md", tmp_path, site, {}))
    assert "gamma 2:" in printed
    assert "x best fixed" in printed
    assert "MyRule" in printed
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert (tmp_path / "runs" / "supervised" / "evaluation" / "x_best_fixed.png").is_file()


def test_the_engineers_walk(site: Path, tmp_path: Path) -> None:
    target = tiny_qwen(0)
    models = {"TARGET": target, "DRAFT": tiny_qwen(1, like=target, noise=0.02)}
    for model in models.values():
        model.config.max_position_embeddings = 1024  # calibration reads longer contexts than the tests
    filled_in = {name: str(save_tiny(tmp_path / name.lower(), model)) for name, model in models.items()}
    printed = "\n".join(walk("quickstart-engineer.md", tmp_path, site, filled_in))
    assert "tokens/s" in printed
    assert "same text: True" in printed
    assert list(tmp_path.glob("*.speckv/policy.json"))
