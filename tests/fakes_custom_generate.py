# SPDX-License-Identifier: Apache-2.0
"""A pair of tiny models on disk, and calls of `generate` in a process that has no SpecKV."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2ForCausalLM

from speckv.integrations.transformers import control
from speckv.runtime import Policy
from tests import without_speckv
from tests.fakes import VOCAB, save_tiny, tiny_qwen

GREEDY = {"max_new_tokens": 30, "do_sample": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Models in memory and in folders."""

    target: Qwen2ForCausalLM
    draft: Qwen2ForCausalLM
    folder: Path

    @staticmethod
    def save(folder: Path) -> "Pair":
        target = tiny_qwen(0)
        pair = Pair(target=target, draft=tiny_qwen(1, like=target, noise=0.008), folder=folder)
        save_tiny(pair.target_folder, pair.target)
        save_tiny(folder / "draft", pair.draft)
        return pair

    @property
    def target_folder(self) -> Path:
        return self.folder / "target"

    def under_control(self, policy: Policy, call: dict[str, Any]) -> dict[str, Any]:
        """What `control` makes of a call, in this process."""
        with control(self.target, self.draft, policy):
            return without_speckv.answered(self.target, self.draft, dict(call))

    def without_speckv(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the calls come to where SpecKV is not, offline, with caches of its own."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder / "home")}
        program = [sys.executable, "-I", without_speckv.__file__, str(self.target_folder), str(self.folder / "draft")]
        run = subprocess.run(
            program,
            input=json.dumps(calls, default=str),
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        said: dict[str, Any] = json.loads(run.stdout)
        assert said["found"] == []
        answers: list[dict[str, Any]] = said["answers"]
        assert len(answers) == len(calls)
        return answers


def call(seed: int = 0, folder: Path | str | None = None, **options: Any) -> dict[str, Any]:
    """A greedy call, unless told otherwise."""
    ids = torch.randint(1, VOCAB, (1, 9), generator=torch.Generator().manual_seed(seed)).tolist()
    made = {"ids": ids, **GREEDY, **options}
    return made if folder is None else {**made, "custom_generate": str(folder), "trust_remote_code": True}
