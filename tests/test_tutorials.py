# SPDX-License-Identifier: Apache-2.0
"""The recipes of docs/extending.md, followed in a copy of the packages: they work, and touch no other file."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes_runs import save_toy

ROOT = Path(__file__).parents[1]
STEP = re.compile(r"```(?:python|yaml)\n# (\S+)(?: before ([^\n]+))?\n(.*?)```", re.DOTALL)
RECIPES = {
    "A rule": ["agents/rules/steady.py", "configs/agent/steady.yaml"],
    "A learner": ["agents/bandits/greedy.py", "configs/agent/greedy.yaml"],
    "A feature": ["speckv/observation/features.py"],
    "A study": ["configs/experiment/ablation/steady.yaml"],
}

CHECK_ALL = """
from speckv.commands import train
from speckv.agents.registry import AGENTS
from speckv.commands.app import compose_checked
from speckv.observation import SCHEMA

assert SCHEMA.index("lag_squared") < SCHEMA.index("draft_confidence_last")
assert AGENTS["greedy"].online and not AGENTS["steady"].online
overrides = ["experiment=ablation/steady"]
train.check(compose_checked("train", overrides), overrides)
"""


def files_of(folder: Path) -> dict[str, str]:
    """Hash of every file, by path."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """A copy in which all recipes have been followed, and the files that each of them touched."""
    copy = tmp_path_factory.mktemp("copy")
    for package in ("speckv", "envs", "agents", "configs"):
        shutil.copytree(
            ROOT / package, copy / package, symlinks=True, ignore=shutil.ignore_patterns("assets", "__pycache__")
        )
    shutil.copy(ROOT / "train.py", copy)
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    touched, before = {}, files_of(copy)
    for section in text.partition("\n# Adding to SpecKV")[2].split("\n## ")[1:]:
        for name, marker, content in STEP.findall(section):
            path = copy / name
            if marker:
                old = path.read_text(encoding="utf-8")
                assert old.count(marker) == 1
                start = old.rindex("\n", 0, old.index(marker)) + 1
                content = old[:start] + content + old[start:]
            else:
                assert not path.exists()
            path.write_text(content, encoding="utf-8")
        after = files_of(copy)
        title = section.partition("\n")[0]
        touched[title] = sorted(name for name, digest in after.items() if before.get(name) != digest)
        before = after
    (copy / "speckv" / "assets").symlink_to(ROOT / "speckv" / "assets")
    return copy, touched


def run(copy: Path, *arguments: str) -> str:
    """What Python prints in the copy."""
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_recipe_touches_no_more_files_than_it_names(followed: tuple[Path, dict[str, list[str]]]) -> None:
    assert followed[1] == RECIPES


def test_what_the_recipes_add_is_found(followed: tuple[Path, dict[str, list[str]]]) -> None:
    run(followed[0], "-c", CHECK_ALL)


@pytest.mark.slow
def test_the_rule_and_the_learner_are_trained_stored_and_compared(
    followed: tuple[Path, dict[str, list[str]]], tmp_path: Path
) -> None:
    traces, cost = save_toy(tmp_path)
    toy = (f"data.traces={traces}", f"cost.table={cost}", "eval.num_resamples=20", f"runs_dir={tmp_path / 'runs'}")
    printed = run(followed[0], "train.py", "agent=steady,greedy", *toy)
    assert "steady" in printed
    assert "greedy" in printed
    assert len(list((tmp_path / "runs").glob("*/*/policy.speckv/policy.json"))) == 2
