# SPDX-License-Identifier: Apache-2.0
"""Replays controllers over the same recorded prompts and measures them against the baselines and the bound."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speckv.cost import CompiledCost, CostTable, describe_clock
from speckv.errors import ConfigError, TraceError
from speckv.evaluation.baselines import (
    AUTOREGRESSIVE,
    BEST_FIXED,
    CLAIRVOYANT,
    REQUEST_ORACLE,
    TASK_ORACLE,
    FixedSweep,
    sweep_fixed,
)
from speckv.evaluation.bootstrap import resample_counts
from speckv.evaluation.metrics import Grid, Group, References, Row, Sums, groups_of, measure
from speckv.observation import SCHEMA, observe_draft
from speckv.replay import CompiledTraces, clairvoyant, replay_controller, replay_policy, replay_stream
from speckv.traces import TraceSet
from speckv.types import Controller, FloatArray, OnlineLearner, StoppingController

NUM_RESAMPLES = 10_000
STREAM_SEED = 20_260_101
"""Of the order in which online learners meet the prompts."""
RESERVED_NAMES = (BEST_FIXED, TASK_ORACLE, REQUEST_ORACLE, CLAIRVOYANT, AUTOREGRESSIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What was compared on what.

    Attributes:
        target: Id of the target model.
        draft: Id of the draft model.
        dtype: Compression -> arithmetic of the target; "draft" -> the draft's.
        sampling: "greedy" or "gumbel".
        traces_sha256: Hash of the trace file.
        cost: Name of the cost table.
        cost_kind: "measured" or "fitted".
        cost_check: Compression -> in a few words, how well the table's times add up to live runs.
        cost_ratio: Compression -> one draft pass over one target pass.
        train_prompts: Distinct prompts the best fixed gamma was tuned on.
        test_prompts: Distinct prompts compared on.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """

    target: str
    draft: str
    dtype: dict[str, str]
    sampling: str
    traces_sha256: str
    cost: str
    cost_kind: str
    cost_check: dict[str, str]
    cost_ratio: dict[str, float]
    train_prompts: int
    test_prompts: int
    num_resamples: int
    seed: int

    @property
    def clock(self) -> str:
        """The cost table's name, and what a reader must know of it."""
        return f"{self.cost} ({describe_clock(self.cost_kind, self.cost_check)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResult:
    """All controllers in one group."""

    group: Group
    rows: tuple[Row, ...]

    def row(self, controller: str) -> Row:
        """The row of one controller."""
        return next(row for row in self.rows if row.controller == controller)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The whole result.

    Attributes:
        setting: What was compared on what.
        best_fixed_gammas: Compression -> gamma tuned on train prompts.
        controllers: Names of the controllers under test, in the order given.
        grid: The test prompts and compressions.
        sums: Per-prompt sums of every controller, baselines and bound included.
        groups: Figures, per compression and task.
    """

    setting: Setting
    best_fixed_gammas: dict[str, int]
    controllers: tuple[str, ...]
    grid: Grid
    sums: tuple[Sums, ...]
    groups: tuple[GroupResult, ...]

    def group(self, compression: str, task: str) -> GroupResult:
        """Figures of one group."""
        return next(g for g in self.groups if (g.group.compression, g.group.task) == (compression, task))


def compare(
    *,
    train: TraceSet,
    test: TraceSet,
    cost: CostTable,
    controllers: Sequence[Controller],
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    train_sweep: FixedSweep | None = None,
) -> Comparison:
    """Compares controllers with plain decoding, every fixed gamma, the best of them, oracles and the clairvoyant bound.

    Args:
        train: Where the best fixed gamma is tuned.
        test: Where everything is measured; shares no prompt with `train`.
        cost: Turns steps into seconds.
        controllers: Under test; their names must differ from one another and from the baselines'.
        num_resamples: Bootstrap resamples of the test prompts.
        seed: Of the bootstrap; nothing else here is random but what controllers draw from generators of their own.
        train_sweep: What `tune_fixed(train, cost)` gives, if it is known already.

    Returns:
        The same result for the same arguments.
    """
    _check(train, test, controllers)
    cost.require(test.compressions)
    tuned = train_sweep or tune_fixed(train, cost)
    gammas = tuned.best()
    compiled, compiled_cost = compile_pair(test, cost)
    sweep = sweep_fixed(compiled, compiled_cost, gamma_max=test.metadata.gamma_max)
    grid = sweep.grid
    tested = [controller_sums(c, compiled, compiled_cost) for c in controllers]
    bound = grid.sums(CLAIRVOYANT, clairvoyant(compiled, compiled_cost))
    best = sweep.combine(gammas)
    references = References(autoregressive=sweep.sums[0], best_fixed=best, clairvoyant=bound)
    sums = (*sweep.sums, best, sweep.task_oracle(tuned), sweep.request_oracle(), *tested, bound)
    counts = resample_counts(grid.tasks, num_resamples, seed)
    groups = tuple(
        GroupResult(group=group, rows=tuple(measure(s, group, references, counts) for s in sums))
        for group in groups_of(grid, sweep.sums[0].tokens)
    )
    metadata = test.metadata
    setting = Setting(
        target=metadata.target_id,
        draft=metadata.draft_id,
        dtype=dict(metadata.dtype),
        sampling=str(metadata.sampling["mode"]),
        traces_sha256=test.sha256,
        cost=cost.name,
        cost_kind=cost.kind,
        cost_check={c: cost.checks[c] for c in grid.compressions},
        cost_ratio={c: float(cost.cost_ratio(c)) for c in grid.compressions},
        train_prompts=len(train.prompt_ids),
        test_prompts=len(grid.prompt_ids),
        num_resamples=num_resamples,
        seed=seed,
    )
    return Comparison(
        setting=setting,
        best_fixed_gammas=gammas,
        controllers=tuple(s.name for s in tested),
        grid=grid,
        sums=sums,
        groups=groups,
    )


def _check(train: TraceSet, test: TraceSet, controllers: Sequence[Controller]) -> None:
    if missing := set(test.compressions) - set(train.compressions):
        raise TraceError(
            f"Expected train prompts at every tested compression, found none at {sorted(missing)}. "
            "Record them or leave that compression out."
        )
    if shared := set(train.prompt_ids) & set(test.prompt_ids):
        raise TraceError(f"Expected disjoint prompts, but {sorted(shared)[:3]} are in train and test. Split by prompt.")
    names = [c.name for c in controllers]
    fixed = {name for name in names if name in RESERVED_NAMES or names.count(name) > 1}
    if fixed:
        raise ConfigError(
            f"Expected distinct controller names other than the baselines', got {sorted(fixed)}. "
            "Leave one of them out, or put it into a folder of another name."
        )


def compile_pair(traces: TraceSet, cost: CostTable) -> tuple[CompiledTraces, CompiledCost]:
    """Prepares a trace set and its costs for replay."""
    compiled = CompiledTraces(traces)
    return compiled, CompiledCost(cost, traces.compressions, gamma_max=traces.metadata.gamma_max)


def tune_fixed(train: TraceSet, cost: CostTable) -> FixedSweep:
    """Replays every fixed gamma on the train prompts, by tokens over seconds."""
    cost.require(train.compressions)
    compiled, compiled_cost = compile_pair(train, cost)
    return sweep_fixed(compiled, compiled_cost, gamma_max=train.metadata.gamma_max)


def controller_sums(controller: Controller, compiled: CompiledTraces, cost: CompiledCost) -> Sums:
    """Replays one controller over every sequence; decisions are charged where the controller charges any.

    One that learns online meets the sequences one after the other, in an order that is drawn once and for all. A copy
    of it does: what it learns here is gone afterwards.
    """
    if isinstance(controller, OnlineLearner):
        order = np.random.default_rng(STREAM_SEED).permutation(len(compiled))
        learner = copy.deepcopy(controller)
        record = replay_stream(learner, compiled, cost, order=order.tolist()).take(np.argsort(order).tolist())
    else:
        record = replay_controller(controller, compiled, cost)
    return Grid.of(compiled).sums(controller.name, record)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionTime:
    """How long one decision takes here and now, in microseconds: a measurement, so no two runs agree."""

    controller: str
    p50_us: float
    p99_us: float


def time_decisions(controller: Controller, observations: FloatArray, *, warm_up: int = 100) -> DecisionTime:
    """Times decisions on each observation in turn, one call at a time as a live decoder makes them.

    Args:
        controller: Under test; one that also decides inside steps is asked that as well, as a decision of its own.
        observations: Shape [decisions, features], as `STOPPING_SCHEMA` lists; more than `warm_up` rows.
        warm_up: First calls that are not counted.
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
    """Observations that a constant gamma meets, each with some draft so far as `STOPPING_SCHEMA` has it, for timing."""
    met: list[FloatArray] = []

    def remember(observations: FloatArray) -> NDArray[np.int64]:
        met.append(np.array(observations))
        return np.full(len(observations), 4, np.int64)

    replay_policy(compiled, cost, remember)
    rows = np.concatenate(met)
    places = np.arange(count)
    drafts = compiled.drafts[places % len(compiled.drafts), 1 + places % (compiled.gamma_max - 1)]
    return observe_draft(rows[places % len(rows)], drafts)
