# SPDX-License-Identifier: Apache-2.0
"""Replays controllers over the same recorded prompts and measures them against the baselines and the bound."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speckv.cost import CompiledCost, CostTable, require_single_request
from speckv.errors import ConfigError
from speckv.evaluation.baselines import (
    AUTOREGRESSIVE,
    BEST_FIXED,
    CLAIRVOYANT,
    REQUEST_ORACLE,
    TASK_ORACLE,
    FixedSweep,
    sweep_fixed,
)
from speckv.evaluation.bootstrap import Float64, resample_counts
from speckv.evaluation.hierarchy import Entrant, SeedGroup, make_entrants, measure_entrant
from speckv.evaluation.lengths import Bucket, groups_by_length, length_buckets
from speckv.evaluation.metrics import ALL, Grid, Group, References, Row, Sums, groups_of, measure
from speckv.evaluation.profiles import Profile, speedup_profile
from speckv.evaluation.setting import Setting, describe_setting
from speckv.evaluation.splits import require_comparable
from speckv.evaluation.verdicts import Family, judge
from speckv.replay import CompiledTraces, clairvoyant, replay_controller, replay_stream
from speckv.traces import TraceSet
from speckv.types import Controller, OnlineLearner, StoppingController

NUM_RESAMPLES = 10_000
STREAM_SEED = 20_260_101
"""Of the order in which online learners meet the prompts."""
RESERVED_NAMES = (BEST_FIXED, TASK_ORACLE, REQUEST_ORACLE, CLAIRVOYANT, AUTOREGRESSIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResult:
    """All controllers in one group."""

    group: Group
    rows: tuple[Row, ...]

    def row(self, controller: str) -> Row:
        """The row of one controller."""
        return next(row for row in self.rows if row.controller == controller)


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthResult:
    """Prompts of one length: controllers under test, the number to beat, plain decoding and the bound."""

    bucket: Bucket
    result: GroupResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The whole result.

    Attributes:
        setting: What was compared on what.
        best_fixed_gammas: Compression -> gamma tuned on train prompts.
        controllers: Names of the controllers under test, in the order given; runs of one agent each by itself.
        entrants: The same with one name for the runs of one agent: what tables and figures show.
        seed_groups: Which controllers those names stand for.
        grid: The test prompts and compressions.
        sums: Per-prompt sums of every controller, baselines and bound included, runs each by itself.
        groups: Figures, per compression and task.
        lengths: Figures, per length of the prompt and compression.
        families: Who is ahead of whom.
        profiles: Shares of prompts by speed-up, per entrant or bound and compression.
    """

    setting: Setting
    best_fixed_gammas: dict[str, int]
    controllers: tuple[str, ...]
    entrants: tuple[str, ...]
    seed_groups: tuple[SeedGroup, ...]
    grid: Grid
    sums: tuple[Sums, ...]
    groups: tuple[GroupResult, ...]
    lengths: tuple[LengthResult, ...]
    families: tuple[Family, ...]
    profiles: tuple[Profile, ...]

    def group(self, compression: str, task: str) -> GroupResult:
        """Figures of one group."""
        return next(g for g in self.groups if (g.group.compression, g.group.task) == (compression, task))

    def overall(self, question: str) -> Family | None:
        """The family of a question over all compressions; None where no such comparison was made."""
        whole = ALL if len(self.grid.compressions) > 1 else self.grid.compressions[0]
        return next((f for f in self.families if (f.question, f.compression) == (question, whole)), None)

    def profile(self, controller: str, compression: str) -> Profile:
        """Profile of an entrant or of the bound."""
        return next(p for p in self.profiles if (p.controller, p.compression) == (controller, compression))


def compare(
    *,
    train: TraceSet,
    test: TraceSet,
    cost: CostTable,
    controllers: Sequence[Controller],
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    train_sweep: FixedSweep | None = None,
    seed_groups: Sequence[SeedGroup] = (),
) -> Comparison:
    """Compares controllers with plain decoding, every fixed gamma, the best of them, oracles and the clairvoyant bound.

    Args:
        train: Where the best fixed gamma is tuned.
        test: Where everything is measured; shares no prompt with `train`.
        cost: Turns steps into seconds.
        controllers: Under test; their names must differ from one another and from the baselines'.
        num_resamples: Bootstrap resamples of the test prompts.
        seed: Of bootstrap and tests; nothing else here is random but what controllers draw from generators of their
            own.
        train_sweep: What `tune_fixed(train, cost)` gives, if it is known already.
        seed_groups: Which controllers are runs of one agent that differ by their seed.

    Returns:
        The same result for the same arguments.
    """
    require_comparable(train, test)
    _check_names([*(c.name for c in controllers), *(g.name for g in seed_groups)])
    for controller in controllers:
        if isinstance(controller, StoppingController):
            require_single_request(controller.name, cost.batch)
    cost.require(test.compressions)
    tuned = train_sweep or tune_fixed(train, cost)
    gammas = tuned.best()
    compiled, compiled_cost = compile_pair(test, cost)
    sweep = sweep_fixed(compiled, compiled_cost, gamma_max=test.metadata.gamma_max)
    grid = sweep.grid
    tested = [controller_sums(c, compiled, compiled_cost) for c in controllers]
    entrants = make_entrants(tested, seed_groups, num_resamples=num_resamples, seed=seed)
    bound = grid.sums(CLAIRVOYANT, clairvoyant(compiled, compiled_cost))
    best = sweep.combine(gammas)
    field = _Field(
        references=References(autoregressive=sweep.sums[0], best_fixed=best, clairvoyant=bound),
        entrants=entrants,
        counts=resample_counts(grid.tasks, num_resamples, seed),
        seed=seed,
    )
    sums = (*sweep.sums, best, sweep.task_oracle(tuned), sweep.request_oracle(), *tested, bound)
    groups = groups_of(grid, sweep.sums[0].tokens)
    whole = tuple(g for g in groups if g.task == ALL)
    return Comparison(
        setting=describe_setting(train, test, cost, grid.compressions, num_resamples=num_resamples, seed=seed),
        best_fixed_gammas=gammas,
        controllers=tuple(s.name for s in tested),
        entrants=tuple(e.name for e in entrants),
        seed_groups=tuple(seed_groups),
        grid=grid,
        sums=sums,
        groups=tuple(field.measure(group, sums) for group in groups),
        lengths=field.by_length(length_buckets(compiled, grid), whole),
        families=field.judge(_distinct(whole)),
        profiles=field.profiles(_distinct(whole)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    """Who takes part, and the resamples that all are judged on."""

    references: References
    entrants: tuple[Entrant, ...]
    counts: Float64
    seed: int

    def measure(self, group: Group, sums: Sequence[Sums]) -> GroupResult:
        """Rows of single controllers, then those of entrants that are several runs."""
        several = [e for e in self.entrants if len(e.runs) > 1]
        rows = [measure(s, group, self.references, self.counts) for s in sums]
        return GroupResult(
            group=group,
            rows=(*rows, *(measure_entrant(e, group, self.references, self.counts) for e in several)),
        )

    def by_length(self, buckets: Sequence[Bucket], whole: tuple[Group, ...]) -> tuple[LengthResult, ...]:
        """Rows of each bucket."""
        references = self.references
        ends = [Entrant.alone(s, len(self.counts)) for s in (references.autoregressive, references.best_fixed)]
        shown = (*ends, *self.entrants, Entrant.alone(references.clairvoyant, len(self.counts)))
        found = []
        for bucket in buckets:
            for group in groups_by_length(bucket, whole, references.autoregressive.tokens):
                rows = tuple(measure_entrant(e, group, references, self.counts) for e in shown)
                found.append(LengthResult(bucket=bucket, result=GroupResult(group=group, rows=rows)))
        return tuple(found)

    def judge(self, groups: Sequence[Group]) -> tuple[Family, ...]:
        """Verdicts of each group."""
        best_fixed = Entrant.alone(self.references.best_fixed, len(self.counts))
        return judge(self.entrants, best_fixed, groups, num_resamples=len(self.counts), seed=self.seed)

    def profiles(self, groups: Sequence[Group]) -> tuple[Profile, ...]:
        """Profiles of every entrant and of the bound in each group."""
        shown = (*self.entrants, Entrant.alone(self.references.clairvoyant, len(self.counts)))
        return tuple(speedup_profile(e, self.references.best_fixed, g, self.counts) for g in groups for e in shown)


def _distinct(whole: tuple[Group, ...]) -> tuple[Group, ...]:
    """Leaves out "all compressions" where there is one."""
    return whole if len(whole) > 2 else whole[:1]


def _check_names(names: Sequence[str]) -> None:
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
