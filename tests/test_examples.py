# SPDX-License-Identifier: Apache-2.0
"""The examples that need no weights, run small in a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import save_tiny, tiny_qwen

ROOT = Path(__file__).resolve().parents[1]


def run(folder: Path, name: str, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_cleanrl_like_ppo(tmp_path: Path) -> None:
    printed = run(tmp_path, "cleanrl_ppo.py", "--steps", "4096", "--num-envs", "32")
    assert "x best fixed gamma on 120 test prompts" in printed
    assert printed.splitlines()[-1].split()[0] == "all"


@pytest.mark.slow
def test_stable_baselines3(tmp_path: Path) -> None:
    printed = run(tmp_path, "sb3_ppo.py", "--steps", "2048")
    assert "tokens/s on 60 test prompts" in printed


def test_own_reward(tmp_path: Path) -> None:
    rewards = [float(line.split()[-1]) for line in run(tmp_path, "own_reward.py").splitlines()]
    assert len(rewards) == 9
    assert rewards[0] == 1.0  # plain decoding is the unit
    assert max(rewards) == max(rewards[1:5])


def test_own_rule(tmp_path: Path) -> None:
    printed = run(tmp_path, "own_rule.py")
    assert "120 test prompts" in printed
    assert float(printed.split("x best fixed ")[1].split()[0]) > 1


@pytest.mark.slow
def test_custom_generate_beside_plain_generate(tmp_path: Path) -> None:
    folders = [str(save_tiny(tmp_path / name, tiny_qwen(seed))) for seed, name in enumerate(("target", "draft"))]
    *_, plain, ours = run(tmp_path, "transformers_custom_generate.py", *folders, "abc").splitlines()
    assert plain.startswith("plain generate ")
    assert ours.startswith("custom_generate ")
    assert ours.endswith("the same text")
