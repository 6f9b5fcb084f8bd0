# SPDX-License-Identifier: Apache-2.0
"""Streams of requests that change half-way, and what learners do on them; `benchmarks.regret_curves` shows it."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.regret import Float64, Hindsight, LearnerRegret, hindsight, learner_regret
from speckv.agents.bandits.base import Bandit
from speckv.agents.registry import TrainingData, agent_settings, begin_learner
from speckv.cost import CostTable
from speckv.evaluation.replays import compile_pair, draw_requests
from speckv.replay import clairvoyant, replay_fixed, replay_stream
from speckv.traces import TraceSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What the requests of half a stream are; every task if none is named."""

    compression: str
    task: str | None = None

    def __str__(self) -> str:
        """As in a caption."""
        return f"{self.task or 'all tasks'}, {self.compression}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A stream that changes half-way, and the cost table that it is timed with."""

    title: str
    cost: str
    phases: tuple[Phase, Phase]


STREAMS = {
    "task": Stream(
        title="another task, times of cpu-2core",
        cost="cpu-2core",
        phases=(Phase(compression="fp16", task="code"), Phase(compression="fp16", task="chat")),
    ),
    "compression": Stream(
        title="another compression, times of cpu-2core",
        cost="cpu-2core",
        phases=(Phase(compression="fp16"), Phase(compression="int8")),
    ),
    "compression-3090": Stream(
        title="another compression, times of rtx3090-paper",
        cost="rtx3090-paper",
        phases=(Phase(compression="int8"), Phase(compression="fp16")),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one stream.

    Attributes:
        stream: Which.
        judged: Constants of each order in hindsight.
        references: Shape [orders, requests]; seconds of the halves' constants.
        learners: By name.
    """

    stream: Stream
    judged: tuple[Hindsight, ...]
    references: Float64
    learners: Mapping[str, LearnerRegret]


def run_stream(stream: Stream, traces: TraceSet, learners: Sequence[str], *, half: int, orders: int) -> Outcome:
    """Lets every learner decode the stream in every order, untrained each time."""
    table = CostTable.load(stream.cost)
    data = TrainingData(train=traces.select(split="train"), cost=table, seed=0)
    compiled, cost = compile_pair(traces.select(split="test"), table)
    kinds = list(zip(compiled.compressions, compiled.tasks, strict=True))
    places = [
        [k for k, (c, task) in enumerate(kinds) if c == phase.compression and phase.task in (None, task)]
        for phase in stream.phases
    ]
    generators = [np.random.default_rng(seed) for seed in range(orders)]
    drawn = [[s for part in places for s in draw_requests(part, half, rng)] for rng in generators]
    constants = np.stack([replay_fixed(compiled, cost, gamma).seconds for gamma in range(compiled.gamma_max + 1)])
    least = clairvoyant(compiled, cost).seconds
    judged = tuple(hindsight(constants[:, order], half) for order in drawn)
    references = np.stack([j.reference for j in judged])
    results = {}
    for name in learners:
        fresh = begin_learner(name, agent_settings({"name": name})[1], data)
        assert isinstance(fresh, Bandit)
        records = []
        for seed, order in enumerate(drawn):
            learner = copy.deepcopy(fresh)
            learner.reseed(seed)
            records.append(replay_stream(learner, compiled, cost, order=order))
        seconds, steps = (np.stack([getattr(r, field) for r in records]) for field in ("seconds", "num_steps"))
        results[name] = learner_regret(seconds, steps, references, np.stack([least[o] for o in drawn]), half)
        logger.info("%s, %s: %+.1f s", stream.phases[1], name, results[name].curves[:, -1].mean())
    return Outcome(stream=stream, judged=judged, references=references, learners=results)


def kept_regret(outcome: Outcome) -> list[float]:
    """Cumulative regret of keeping the first half's constant, a mean over orders."""
    lost = np.stack([np.cumsum(j.kept - j.reference) for j in outcome.judged])
    values: list[float] = lost.mean(axis=0).tolist()
    return values
