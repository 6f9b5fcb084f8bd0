# SPDX-License-Identifier: Apache-2.0
"""Replays controllers and every fixed gamma on recorded prompts, and times decisions.

The best fixed gamma of each compression is the main baseline. Two oracles bound what a less frequent choice could gain:
the task oracle uses the task of a prompt, the request oracle its whole future.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from speckv.cost import CompiledCost, CostTable
from speckv.errors import ConfigError
from speckv.evaluation.bootstrap import Float64
from speckv.evaluation.metrics import Grid, Sums, combine_sums
from speckv.observation import SCHEMA, observe_draft
from speckv.replay import CompiledTraces, replay_controller, replay_fixed, replay_policy, replay_stream
from speckv.traces import TraceSet
from speckv.types import Controller, FloatArray, IntArray, OnlineLearner, StoppingController

AUTOREGRESSIVE = "autoregressive"
BEST_FIXED = "best-fixed"
CLAIRVOYANT = "clairvoyant"
TASK_ORACLE = "task-oracle"
REQUEST_ORACLE = "request-oracle"
STREAM_SEED = 20_260_101
"""Seed of the order in which online learners decode the prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedSweep:
    """Sums of every constant gamma on one trace set: one entry per gamma from 0, which is plain decoding."""

    grid: Grid
    sums: tuple[Sums, ...]

    def throughputs(self) -> Float64:
        """Tokens per second, of shape [gammas, compressions]."""
        return np.array([s.tokens.sum(axis=0) / s.seconds.sum(axis=0) for s in self.sums])

    def best(self) -> dict[str, int]:
        """Gamma of the highest throughput for each compression; ties go to the smaller."""
        return dict(zip(self.grid.compressions, self.throughputs().argmax(axis=0).tolist(), strict=True))

    def best_by_task(self) -> dict[tuple[str, str], int]:
        """The same by task and compression, where recorded."""
        tasks = np.array(self.grid.tasks)
        found = {}
        for task in sorted(set(self.grid.tasks)):
            tokens, seconds = (
                np.array([getattr(s, field)[tasks == task].sum(axis=0) for s in self.sums])
                for field in ("tokens", "seconds")
            )
            for column, compression in enumerate(self.grid.compressions):
                if seconds[0, column] > 0:
                    found[task, compression] = int((tokens[:, column] / seconds[:, column]).argmax())
        return found

    def combine(self, gammas: Mapping[str, int]) -> Sums:
        """Sums of the best fixed gamma, given by compression."""
        by_column = [gammas[c] for c in self.grid.compressions]
        return self.select(np.tile(by_column, (len(self.grid.prompt_ids), 1)), BEST_FIXED)

    def task_oracle(self, train: "FixedSweep") -> Sums:
        """Sums of the constants that were best on train prompts of the same task, or else of the same compression."""
        by_task, by_compression = train.best_by_task(), train.best()
        chosen = [
            [by_task.get((task, c), by_compression[c]) for c in self.grid.compressions] for task in self.grid.tasks
        ]
        return self.select(np.array(chosen), TASK_ORACLE)

    def request_oracle(self) -> Sums:
        """Sums of the constant that is fastest for each request, chosen in hindsight; ties go to the smaller."""
        return self.select(np.stack([s.seconds for s in self.sums]).argmin(axis=0), REQUEST_ORACLE)

    def select(self, gammas: IntArray, name: str) -> Sums:
        """Sums of one constant per request, given as an array of shape [prompts, compressions]."""
        rows, columns = np.indices(gammas.shape)
        return combine_sums(name, self.sums, lambda stacked: stacked[gammas, rows, columns])


def fixed_name(gamma: int) -> str:
    """Name of a constant gamma in tables.

    >>> fixed_name(4), fixed_name(0)
    ('fixed-4', 'autoregressive')
    """
    return f"fixed-{gamma}" if gamma else AUTOREGRESSIVE


def sweep_fixed(compiled: CompiledTraces, cost: CompiledCost) -> FixedSweep:
    """Replays every constant gamma from 0 to the recorded depth."""
    grid = Grid.of(compiled)
    gammas = range(compiled.gamma_max + 1)
    sums = tuple(grid.sums(fixed_name(gamma), replay_fixed(compiled, cost, gamma)) for gamma in gammas)
    return FixedSweep(grid=grid, sums=sums)


def tune_fixed(train: TraceSet, cost: CostTable) -> FixedSweep:
    """Replays every constant gamma on the train prompts; `best` of the result is the best fixed gamma."""
    cost.require(train.compressions)
    return sweep_fixed(*compile_pair(train, cost))


def compile_pair(traces: TraceSet, cost: CostTable) -> tuple[CompiledTraces, CompiledCost]:
    """Prepares a trace set and its costs for replay."""
    compiled = CompiledTraces(traces)
    return compiled, CompiledCost(cost, traces.compressions, gamma_max=traces.metadata.gamma_max)


def controller_sums(controller: Controller, compiled: CompiledTraces, cost: CompiledCost) -> Sums:
    """Replays one controller over every sequence, charging decisions where the controller charges any.

    A copy of an online learner decodes the sequences one after the other, in one fixed random order.
    """
    if isinstance(controller, OnlineLearner):
        order = np.random.default_rng(STREAM_SEED).permutation(len(compiled))
        learner = copy.deepcopy(controller)
        record = replay_stream(learner, compiled, cost, order=order.tolist()).take(np.argsort(order).tolist())
    else:
        record = replay_controller(controller, compiled, cost)
    return Grid.of(compiled).sums(controller.name, record)


def draw_requests(sequences: Sequence[int], number: int, rng: np.random.Generator) -> list[int]:
    """Draws a stream of requests: every sequence equally often, give or take one, in a random order.

    >>> sorted(draw_requests([3, 5], 4, np.random.default_rng(0)))
    [3, 3, 5, 5]
    """
    if not len(sequences):
        raise ConfigError("Expected at least 1 recording to draw requests from, got none.")
    passes = [rng.permutation(np.asarray(sequences)) for _ in range(-(-number // len(sequences)))]
    drawn: list[int] = np.concatenate(passes)[:number].tolist()
    return drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionTime:
    """Percentiles of the time of one decision, in microseconds, measured on this machine."""

    controller: str
    p50_us: float
    p99_us: float


def time_decisions(controller: Controller, observations: FloatArray, *, warm_up: int = 100) -> DecisionTime:
    """Times each decision alone, as in a live decoder; the first `warm_up` are not counted.

    `observations` has shape [decisions, features of `STOPPING_SCHEMA`], and more than `warm_up` rows. A stopping
    controller's decision after a drafted token is timed separately.
    """
    controller.reset()
    seconds: list[float] = []
    stopper = controller if isinstance(controller, StoppingController) else None
    for observation in observations:
        before = observation[: SCHEMA.size]
        start = time.perf_counter()
        controller.act(before)
        seconds.append(time.perf_counter() - start)
        if stopper is not None:
            start = time.perf_counter()
            stopper.go_on(observation)
            seconds.append(time.perf_counter() - start)
    p50, p99 = np.percentile(np.array(seconds[warm_up:]) * 1e6, [50, 99])
    return DecisionTime(controller=controller.name, p50_us=float(p50), p99_us=float(p99))


def sample_observations(compiled: CompiledTraces, cost: CompiledCost, count: int = 2000) -> FloatArray:
    """Observations of a constant gamma, each with part of a draft as in `STOPPING_SCHEMA`, for `time_decisions`."""
    seen: list[FloatArray] = []
    gamma = min(4, compiled.gamma_max)

    def record(observations: FloatArray) -> IntArray:
        seen.append(np.array(observations))
        return np.full(len(observations), gamma, np.int64)

    replay_policy(compiled, cost, record)
    rows = np.concatenate(seen)
    places = np.arange(count)
    drafts = compiled.drafts[places % len(compiled.drafts), 1 + places % max(compiled.gamma_max - 1, 1)]
    return observe_draft(rows[places % len(rows)], drafts)
