# SPDX-License-Identifier: Apache-2.0
"""Small runs on made-up recordings in which looking at the draft's signals pays."""

import io
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from speckv.agents.runs.child_runs import ERROR_PREFIX, ChildRun
from speckv.agents.runs.console import Console, ProgressBar
from speckv.agents.runs.settings import CostSettings, DataSettings, EvalSettings, TrainSettings
from speckv.agents.runs.training import train
from speckv.commands import train as program
from speckv.commands.app import compose_checked
from speckv.errors import SpecKVError
from speckv.traces import TraceSequence, TraceSet
from tests.fakes_settings import shipped
from tests.fakes_traces import make_cost_table, make_sequence, make_traces

TINY_PPO: dict[str, object] = {
    "name": "ppo",
    "total_steps": 1024,
    "num_envs": 8,
    "num_steps": 16,
    "batch_size": 64,
    "num_epochs": 2,
    "hidden": [16],
    "normalisation_steps": 256,
}

_TINY = {"total_steps": 1024, "num_envs": 8, "num_steps": 16, "hidden": [16], "normalisation_steps": 256}
_TINY_Q = {"gradient_steps": 2, "batch_size": 64, "buffer_size": 512, "learning_starts": 128, "target_interval": 64}
TINY_LEARNERS: dict[str, dict[str, object]] = {
    "a2c": {"name": "a2c", **_TINY},
    "dqn": {"name": "dqn", **_TINY, **_TINY_Q, "return_steps": 3},
    "ppo": TINY_PPO,
    "qr_dqn": {"name": "qr_dqn", **_TINY, **_TINY_Q, "num_quantiles": 5},
    "recurrent_ppo": {**TINY_PPO, "name": "recurrent_ppo", "lstm_hidden": 8},
}


def easy_or_hard(number: int, compression: str, *, length: int = 40) -> TraceSequence:
    """One recording: even prompts are drafted right nearly always, odd ones hardly ever, and the signals tell."""
    easy = number % 2 == 0
    rng = np.random.default_rng(number)
    hits = rng.random(length) < (0.97 if easy else 0.05)
    sequence = make_sequence(
        hits,
        compression=compression,
        prompt_id=f"p{number}",
        task=("code", "chat", "math")[number % 3],
        split="test" if number % 4 >= 2 else "train",
        prompt_len=5 + number,
        seed=number,
    )
    confidence = 0.95 if easy else 0.3
    signals = np.array([0.2 if easy else 3.0, confidence, confidence / 2], np.float32)
    return replace(sequence, draft_signals=np.tile(signals, (length, 1)))


def toy_traces(num_prompts: int = 48, *, sampled: bool = False) -> TraceSet:
    """Easy and hard prompts, half of either for testing, at two compressions."""
    sequences = [easy_or_hard(n, c) for c in ("fp16", "nf4") for n in range(num_prompts)]
    if sampled:
        rng = np.random.default_rng(0)
        sequences = [
            replace(s, accept_prob=np.maximum(s.accept_prob, rng.random(len(s.tokens))).astype(np.float32))
            for s in sequences
        ]
    return make_traces(sequences, max_new_tokens=40, sampled=sampled)


def save_toy(folder: Path, *, sampled: bool = False) -> tuple[str, str]:
    """Writes toy recordings and costs; returns their paths."""
    traces, cost = folder / "toy.parquet", folder / "toy.json"
    toy_traces(24, sampled=sampled).save(traces)
    replace(make_cost_table(), controller_s=0.001).save(cost)
    return str(traces), str(cost)


def toy_settings(folder: Path, output: Path, *, agent: Mapping[str, object] = TINY_PPO) -> TrainSettings:
    """Settings of a run of a second or two."""
    traces, cost = save_toy(folder)
    return shipped(
        TrainSettings,
        agent=agent,
        data=shipped(DataSettings, traces=traces, validation_fraction=0.3),
        cost=shipped(CostSettings, table=cost),
        eval=shipped(EvalSettings, every_steps=400, num_resamples=50),
        output=str(output),
    )


class CapturedConsole(Console):
    """Keeps what was written, and calls back where a progress bar moves."""

    def __init__(self, on_update: Mapping[int, object] | None = None) -> None:
        self.buffer = io.StringIO()
        super().__init__(self.buffer)
        self._on_update = dict(on_update or {})

    @property
    def text(self) -> str:
        return self.buffer.getvalue()

    @contextmanager
    def progress(
        self, total: int, completed: int = 0, unit: str = "step", label: str = "training"
    ) -> Iterator[ProgressBar]:
        with super().progress(total, completed, unit, label) as bar:
            yield _Watched(bar, self._on_update)


class _Watched:
    def __init__(self, bar: ProgressBar, on_update: dict[int, object]) -> None:
        self._bar, self._on_update = bar, on_update

    def update(self, completed: int, note: str) -> None:
        self._bar.update(completed, note)
        for step in [s for s in self._on_update if completed >= s]:
            action = self._on_update.pop(step)
            assert callable(action)
            action()

    def milestone(self, text: str) -> None:
        self._bar.milestone(text)


def start_here(run: ChildRun) -> "subprocess.Popen[bytes]":
    """`ChildRun.start` without a Python of its own: trains here, and returns a process with the exit status."""
    overrides, status = [*run.overrides, f"output={run.folder}"], 0
    if run.begun:
        shutil.rmtree(run.folder)
    try:
        config = compose_checked(program.NAME, overrides)
        text = OmegaConf.to_yaml(config, resolve=True)
        train(program.settings_from(config), CapturedConsole(), config=text, overrides=overrides)
    except SpecKVError as error:
        run.log.parent.mkdir(parents=True, exist_ok=True)
        run.log.write_text(f"{ERROR_PREFIX}{error}\n", encoding="utf-8")
        status = 2
    return subprocess.Popen(["sh", "-c", f"exit {status}"])


def without_clock(text: str) -> str:
    """Blanks rates that differ between two equal runs."""
    return re.sub(r"[\d,.]+ steps/s", "", text)
