# SPDX-License-Identifier: Apache-2.0
"""Compares controllers on recorded prompts with the baselines and the clairvoyant bound."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from speckv.cost import CostTable, describe_clock, require_single_request
from speckv.errors import ConfigError, TraceError
from speckv.evaluation.bootstrap import Float64, resample_counts
from speckv.evaluation.entrants import (
    ControllerMetrics,
    Entrant,
    Profile,
    References,
    SeedGroup,
    make_entrants,
    measure,
    speedup_profile,
)
from speckv.evaluation.metrics import ALL, Bucket, Grid, Group, Sums, groups_by_length, groups_of, length_buckets
from speckv.evaluation.replays import (
    AUTOREGRESSIVE,
    BEST_FIXED,
    CLAIRVOYANT,
    REQUEST_ORACLE,
    TASK_ORACLE,
    FixedSweep,
    compile_pair,
    controller_sums,
    sweep_fixed,
    tune_fixed,
)
from speckv.evaluation.significance import Family, paired_families
from speckv.replay import clairvoyant
from speckv.traces import TraceSet
from speckv.types import Controller, StoppingController

logger = logging.getLogger(__name__)

NUM_RESAMPLES = 10_000
RESERVED_NAMES = (BEST_FIXED, TASK_ORACLE, REQUEST_ORACLE, CLAIRVOYANT, AUTOREGRESSIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonSetting:
    """Models, recordings, cost table and statistics of a comparison.

    Attributes:
        dtype: Compression -> arithmetic of the target; "draft" -> the draft's.
        sampling: "greedy" or "gumbel".
        temperature: Of the recorded text; 0 for greedy, None where the recording does not state it.
        cost_kind: "measured" or "fitted".
        cost_check: Compression -> in a few words, how well the table's times add up to live runs.
        cost_ratio: Compression -> one draft pass over one target pass.
        train_prompts: Number of prompts that the best fixed gamma was tuned on.
        seed: Of the bootstrap and the tests.
    """

    target: str
    draft: str
    dtype: dict[str, str]
    sampling: str
    temperature: float | None
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
        """The cost table's name, kind and check."""
        return f"{self.cost} ({describe_clock(self.cost_kind, self.cost_check)})"

    @property
    def text(self) -> str:
        """Sampling mode and temperature of the recorded text."""
        return f"{self.sampling}, temperature {self.temperature:g}" if self.temperature else self.sampling


def describe_setting(
    train: TraceSet, test: TraceSet, cost: CostTable, compressions: Sequence[str], *, num_resamples: int, seed: int
) -> ComparisonSetting:
    """Collects the setting of a comparison.

    Args:
        train: Where the best fixed gamma is tuned.
        test: Where everything is measured.
        compressions: Of the test prompts, in the order of the tables.
    """
    metadata = test.metadata
    temperature = metadata.sampling.get("temperature") if metadata.is_sampled else 0.0
    return ComparisonSetting(
        target=metadata.target_id,
        draft=metadata.draft_id,
        dtype=dict(metadata.dtype),
        sampling=str(metadata.sampling["mode"]),
        temperature=None if temperature is None else float(temperature),
        traces_sha256=test.sha256,
        cost=cost.name,
        cost_kind=cost.kind,
        cost_check={c: cost.checks[c] for c in compressions},
        cost_ratio={c: float(cost.cost_ratio(c)) for c in compressions},
        train_prompts=len(train.prompt_ids),
        test_prompts=len(test.prompt_ids),
        num_resamples=num_resamples,
        seed=seed,
    )


def with_decode_steps(traces: TraceSet) -> TraceSet:
    """Leaves out texts of one token, which come from the prefill and have no decode step, and logs their number.

    Raises:
        TraceError: if no text is left.
    """
    kept = tuple(s for s in traces.sequences if len(s.tokens) > 1)
    if not kept:
        raise TraceError(
            f"Expected a text of two tokens or more, got {len(traces.sequences)} texts of one, which have no decode "
            "step. Record longer texts."
        )
    number = len(traces.sequences) - len(kept)
    if number:
        gone = sorted(set(traces.compressions) - {s.compression for s in kept})
        whole = f"; nothing is left at {', '.join(gone)}" if gone else ""
        logger.warning("Left out %d texts of one token, which have no decode step%s.", number, whole)
    return replace(traces, sequences=kept) if number else traces


def require_decode_steps(traces: TraceSet, compressions: tuple[str, ...], use: str, advice: str) -> None:
    """Checks that there is a decode step at each of these compressions.

    Args:
        use: What the recordings are, such as "train prompts"; begins the message.
        advice: Ends the message.

    Raises:
        TraceError: naming the compressions without one.
    """
    present = {s.compression for s in traces.sequences if len(s.tokens) > 1}
    if missing := sorted(set(compressions) - present):
        raise TraceError(f"Expected {use} with decode steps at {sorted(compressions)}, got none at {missing}. {advice}")


def require_comparable(train: TraceSet, test: TraceSet) -> None:
    """Checks that controllers tuned on some recordings can be compared on others.

    Raises:
        TraceError: if a tested compression has no decode step on either side, a prompt is on both, or the recorded
            depths differ.
    """
    advice = "Record them, or leave that compression out with data.compressions."
    require_decode_steps(train, test.compressions, "train prompts", advice)
    require_decode_steps(test, test.compressions, "test prompts", advice)
    if shared := set(train.prompt_ids) & set(test.prompt_ids):
        raise TraceError(f"Expected disjoint prompts, but {sorted(shared)[:3]} are in train and test. Split by prompt.")
    if train.metadata.gamma_max != test.metadata.gamma_max:
        raise TraceError(
            f"Expected train and test prompts of one recorded depth, got gamma_max {train.metadata.gamma_max} and "
            f"{test.metadata.gamma_max}. Record both alike."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResult:
    """Figures of controllers in one group; `bucket` is its prompt length where it is one."""

    group: Group
    rows: tuple[ControllerMetrics, ...]
    bucket: Bucket | None = None

    def row(self, controller: str) -> ControllerMetrics:
        """Figures of one controller."""
        return next(row for row in self.rows if row.controller == controller)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The whole result.

    Attributes:
        best_fixed_gammas: Compression -> gamma tuned on train prompts.
        controllers: Names of the controllers under test, in the order given; every run of an agent separately.
        entrants: The same with one name per seed group, as tables and figures show them.
        grid: The test prompts and compressions.
        sums: Per-prompt sums of every controller, baselines and bound included; every run separately.
        groups: Figures, per compression and task.
        lengths: Figures, per prompt length and compression: plain decoding, best fixed gamma, entrants and the bound.
        families: Paired comparisons.
        profiles: Performance profiles, per compression, of each entrant and the bound.
    """

    setting: ComparisonSetting
    best_fixed_gammas: dict[str, int]
    controllers: tuple[str, ...]
    entrants: tuple[str, ...]
    seed_groups: tuple[SeedGroup, ...]
    grid: Grid
    sums: tuple[Sums, ...]
    groups: tuple[GroupResult, ...]
    lengths: tuple[GroupResult, ...]
    families: tuple[Family, ...]
    profiles: tuple[Profile, ...]

    def group(self, compression: str, task: str) -> GroupResult:
        """Figures of one group."""
        return next(g for g in self.groups if (g.group.compression, g.group.task) == (compression, task))

    def overall(self, question: str) -> Family | None:
        """The family of a question over all compressions; None if no such comparison was made."""
        whole = ALL if len(self.grid.compressions) > 1 else self.grid.compressions[0]
        return next((f for f in self.families if (f.question, f.compression) == (question, whole)), None)

    def profile(self, controller: str, compression: str) -> Profile:
        """Performance profile of an entrant or of the bound."""
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
        controllers: Their names must differ from one another and from the baselines'.
        num_resamples: Bootstrap resamples of the test prompts.
        seed: Of bootstrap and tests. The only other randomness is that of the controllers' own generators.
        train_sweep: Result of `tune_fixed(train, cost)`, to save computing it again.
        seed_groups: Controllers that are runs of one agent and differ by their seed.
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
        groups=field.results(groups, sums),
        lengths=field.by_length(length_buckets(compiled, grid), whole),
        families=field.families(_distinct(whole)),
        profiles=field.profiles(_distinct(whole)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    """The entrants, and the references and resamples that all are measured with."""

    references: References
    entrants: tuple[Entrant, ...]
    counts: Float64
    seed: int

    def _single(self, *sums: Sums) -> list[Entrant]:
        return [Entrant.single(s, len(self.counts)) for s in sums]

    def _measure(self, group: Group, entrants: Sequence[Entrant]) -> GroupResult:
        rows = tuple(measure(e, group, self.references, self.counts) for e in entrants)
        return GroupResult(group=group, rows=rows)

    def results(self, groups: Sequence[Group], sums: Sequence[Sums]) -> tuple[GroupResult, ...]:
        """Figures of single controllers, then those of entrants with several runs."""
        shown = [*self._single(*sums), *(e for e in self.entrants if len(e.runs) > 1)]
        return tuple(self._measure(group, shown) for group in groups)

    def by_length(self, buckets: Sequence[Bucket], whole: tuple[Group, ...]) -> tuple[GroupResult, ...]:
        """Figures of each bucket."""
        references = self.references
        ends = self._single(references.autoregressive, references.best_fixed)
        shown = (*ends, *self.entrants, *self._single(references.clairvoyant))
        return tuple(
            replace(self._measure(group, shown), bucket=bucket)
            for bucket in buckets
            for group in groups_by_length(bucket, whole, references.autoregressive.tokens)
        )

    def families(self, groups: Sequence[Group]) -> tuple[Family, ...]:
        """Paired comparisons of each group."""
        (best_fixed,) = self._single(self.references.best_fixed)
        return paired_families(self.entrants, best_fixed, groups, num_resamples=len(self.counts), seed=self.seed)

    def profiles(self, groups: Sequence[Group]) -> tuple[Profile, ...]:
        """Performance profiles of every entrant and of the bound in each group."""
        shown = (*self.entrants, *self._single(self.references.clairvoyant))
        return tuple(speedup_profile(e, self.references.best_fixed, g, self.counts) for g in groups for e in shown)


def _distinct(whole: tuple[Group, ...]) -> tuple[Group, ...]:
    """Leaves out the group of all compressions if there is only one compression."""
    return whole if len(whole) > 2 else whole[:1]


def _check_names(names: Sequence[str]) -> None:
    taken = {name for name in names if name in RESERVED_NAMES or names.count(name) > 1}
    if taken:
        raise ConfigError(
            f"Expected distinct controller names other than the baselines', got {sorted(taken)}. "
            "Leave one of them out, or put it into a folder of another name."
        )
