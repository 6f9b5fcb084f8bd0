# SPDX-License-Identifier: Apache-2.0
"""Live runs without weights: lookup tables decode, a clock that ticks whenever it is read tells the time."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from speckv.agents.runs.requests import LoadedPair, Loader
from speckv.agents.runs.settings import EnvSettings, LiveSettings, RewardSettings, TrainSettings
from speckv.agents.runs.training import train
from speckv.decoding import Engine, SamplingConfig
from tests.fakes import TableModel, TableSequence
from tests.fakes_runs import CapturedConsole, toy_settings
from tests.fakes_settings import shipped

BUDGET = 12
TINY_LIVE_PPO: dict[str, object] = {
    "name": "ppo",
    "total_steps": 64,
    "num_envs": 1,
    "num_steps": 16,
    "batch_size": 8,
    "num_epochs": 2,
    "hidden": [16],
    "normalisation_steps": 16,
}


def ticking() -> Callable[[], float]:
    """A clock that moves by one second whenever it is read."""
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    return clock


class FailingModel(TableModel):
    """Works for so many passes, then fails as it is told to."""

    def __init__(self, table: Tensor, passes: int, fail: Callable[[Tensor], Tensor]) -> None:
        super().__init__(table)
        self.left, self.fail = passes, fail

    def sequence(self) -> TableSequence:
        return _FailingSequence(self)


class _FailingSequence(TableSequence):
    def extend(self, tokens: Sequence[int] | Tensor, *, num_logits: int | None = None) -> Tensor:
        assert isinstance(self.model, FailingModel)
        logits = super().extend(tokens, num_logits=num_logits)
        self.model.left -= 1
        return self.model.fail(logits) if self.model.left < 0 else logits


def out_of_memory(_: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def lost_device(_: Tensor) -> Tensor:
    raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported")


def ctrl_c_twice(_: Tensor) -> Tensor:
    raise KeyboardInterrupt


def no_numbers(logits: Tensor) -> Tensor:
    return logits * float("nan")


def loader(passes: int | None = None, fail: Callable[[Tensor], Tensor] = out_of_memory) -> Loader:
    """Loads tables; with `passes` the target fails after that many."""

    def load(model: Mapping[str, object], sampling: SamplingConfig) -> LoadedPair:
        target = TableModel.random(4)
        draft = target.perturbed(5, 1.0)
        chosen = target if passes is None else FailingModel(target.table, passes, fail)
        engine = Engine(chosen, draft, sampling=sampling, clock=ticking())
        facts = {
            "target": "table",
            "draft": "other table",
            "compression": str(model["compression"]),
            "dtype": "float64",
            "device": "cpu",
        }
        return LoadedPair(engine=engine, encode=lambda text: [ord(c) % 7 for c in text], facts=facts)

    return load


def live_settings(
    folder: Path,
    name: str,
    agent: Mapping[str, object],
    *,
    decides: str = "per_step",
    heldout: int = 1,
    requests: int = 4,
) -> TrainSettings:
    """Settings of a run of a second."""
    prompts = folder / "prompts.jsonl"
    records = [
        {"id": f"{split}{n}", "task": "code", "prompt": "abcdef"[n : n + 3], "split": split}
        for split in ("train", "test")
        for n in range(3)
    ]
    prompts.write_text("\n".join(map(json.dumps, records)))
    return replace(
        toy_settings(folder, folder / name, agent=agent),
        env=shipped(EnvSettings, budget=BUDGET, decides=decides),
        reward=shipped(RewardSettings, name="lambda_throughput" if decides == "per_token" else "throughput"),
        live=shipped(LiveSettings, prompts=(str(prompts),), requests=requests, heldout=heldout, fixed_gammas=(1, 2)),
        model={"compression": "fp16"},
    )


def run_live(
    settings: TrainSettings, console: CapturedConsole | None = None, load: Loader | None = None
) -> dict[str, object]:
    """Trains and returns the report."""
    console = console or CapturedConsole()
    folder = train(settings, console, config="seed: 0\n", overrides=["seed=0"], load=load or loader())
    report: dict[str, object] = json.loads((folder / "evaluation" / "live.json").read_text())
    return report


def lines(settings: TrainSettings) -> list[dict[str, object]]:
    """What was decoded; fails where a line is no JSON."""
    text = (Path(str(settings.output)) / "decoded.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
