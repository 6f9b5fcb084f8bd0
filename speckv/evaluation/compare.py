# SPDX-License-Identifier: Apache-2.0
"""Compares controllers on recorded prompts with the baselines and the clairvoyant bound."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from speckv.cost import CostTable, describe_clock, require_single_request
from speckv.errors import ConfigError, TraceError
from speckv.evaluation.bootstrap import MIN_PROMPTS, resample_counts
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
        temperature: 0 for greedy text, None where the recording does not state it.
        cost_check: Compression -> in a few words, how well the table's times add up to live runs.
        train_prompts: Number of prompts that the best fixed gamma was tuned on.
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
    """Collects the setting of a comparison; `compressions` are in the order of the tables."""
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
    """Leaves out texts of one token, which come from the prefill and have no decode step, and logs their number."""
    kept = tuple(s for s in traces.sequences if len(s.tokens) > 1)
    if not kept:
        number = len(traces.sequences)
        raise TraceError(f"Expected texts of two tokens or more, got {number} texts of one. Record longer texts.")
    number = len(traces.sequences) - len(kept)
    if number:
        gone = sorted(set(traces.compressions) - {s.compression for s in kept})
        whole = f"; nothing is left at {', '.join(gone)}" if gone else ""
        logger.warning("Left out %d texts of one token, which have no decode step%s.", number, whole)
    return replace(traces, sequences=kept) if number else traces


def require_decode_steps(traces: TraceSet, compressions: tuple[str, ...], use: str, advice: str) -> None:
    """Raises a TraceError if a compression has no decode step; `use` names the recordings, `advice` ends the text."""
    present = {s.compression for s in traces.sequences if len(s.tokens) > 1}
    if missing := sorted(set(compressions) - present):
        raise TraceError(f"Expected {use} with decode steps at {sorted(compressions)}, got none at {missing}. {advice}")


def require_comparable(train: TraceSet, test: TraceSet) -> None:
    """Raises a TraceError if a tested compression lacks decode steps, prompts are shared, or recorded depths differ."""
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
        controllers: Names of the controllers under test; every run of an agent separately.
        entrants: The same with one name per seed group.
        sums: Of every controller, baselines and bound included; every run separately.
        groups: By compression and task.
        lengths: By prompt length and compression, for plain decoding, best fixed gamma, entrants and bound.
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

    @property
    def main_controller(self) -> str:
        """The first controller under test, or the bound if there is none."""
        return self.controllers[0] if self.controllers else CLAIRVOYANT

    def group(self, compression: str, task: str = ALL) -> GroupResult:
        """Figures of one group; "all" stands for all compressions, and for all tasks."""
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
    on_controller: Callable[[int, str], None] = lambda *_: None,
) -> Comparison:
    """Compares controllers with plain decoding, every fixed gamma, the best of them, oracles and the clairvoyant bound.

    >>> from speckv.cost import CostTable
    >>> from speckv.runtime.constant import ConstantGamma
    >>> from speckv.traces import TraceSet, find_traces
    >>> traces = TraceSet.load(find_traces("qwen2.5-coder-greedy")).select(compressions=["fp16"], tasks=["code"])
    >>> comparison = compare(
    ...     train=traces.select(split="train"),
    ...     test=traces.select(split="test"),
    ...     cost=CostTable.load("cpu-2core"),
    ...     controllers=[ConstantGamma(3, name="mine")],
    ...     num_resamples=100,
    ... )
    >>> comparison.best_fixed_gammas
    {'fp16': 4}
    >>> round(comparison.group("fp16").row("mine").speedup_vs_best_fixed.estimate, 3)
    0.992

    Args:
        controllers: Not changed: online learners are copied, and learn from one test prompt to the next.
        train: Prompts that the best fixed gamma is tuned on.
        test: Prompts that everything is measured on, none of them in `train`.
        seed: Of bootstrap and tests; controllers have generators of their own.
        train_sweep: Result of `tune_fixed(train, cost)`, if it is known.
        seed_groups: Controllers that are runs of one agent and differ by their seed.
        on_controller: Receives the number of controllers replayed so far, and the name of the next one or "".

    Raises:
        ConfigError: if names of controllers equal one another or those of baselines.
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
    sweep = sweep_fixed(compiled, compiled_cost)
    grid, plain = sweep.grid, sweep.sums[0]
    tested = []
    for number, controller in enumerate(controllers):
        on_controller(number, controller.name)
        tested.append(controller_sums(controller, compiled, compiled_cost))
    on_controller(len(controllers), "")
    best, bound = sweep.combine(gammas), grid.sums(CLAIRVOYANT, clairvoyant(compiled, compiled_cost))
    sums = (*sweep.sums, best, sweep.task_oracle(tuned), sweep.request_oracle(), *tested, bound)

    entrants = make_entrants(tested, seed_groups, num_resamples=num_resamples, seed=seed)
    plain_entrant, best_entrant, bound_entrant = (Entrant.single(s, num_resamples) for s in (plain, best, bound))
    references = References(autoregressive=plain, best_fixed=best, clairvoyant=bound)
    counts = resample_counts(grid.tasks, num_resamples, seed)

    def result(group: Group, contestants: Iterable[Entrant], bucket: Bucket | None = None) -> GroupResult:
        rows = tuple(measure(e, group, references, counts) for e in contestants)
        return GroupResult(group=group, rows=rows, bucket=bucket)

    groups = groups_of(grid, plain.tokens)
    whole = tuple(g for g in groups if g.task == ALL)
    # With one compression, the group of all compressions would repeat it.
    distinct = whole if len(whole) > 2 else whole[:1]
    with_bound = (*entrants, bound_entrant)
    every_run = [*(Entrant.single(s, num_resamples) for s in sums), *(e for e in entrants if len(e.runs) > 1)]
    return Comparison(
        setting=describe_setting(train, test, cost, grid.compressions, num_resamples=num_resamples, seed=seed),
        best_fixed_gammas=gammas,
        controllers=tuple(s.name for s in tested),
        entrants=tuple(e.name for e in entrants),
        seed_groups=tuple(seed_groups),
        grid=grid,
        sums=sums,
        groups=tuple(result(group, every_run) for group in groups),
        lengths=tuple(
            result(group, [plain_entrant, best_entrant, *with_bound], bucket)
            for bucket in length_buckets(compiled, grid)
            for group in groups_by_length(bucket, whole, plain.tokens)
        ),
        families=paired_families(
            entrants,
            best_entrant,
            [group for group in distinct if len(group.prompts) >= MIN_PROMPTS],
            num_resamples=num_resamples,
            seed=seed,
        ),
        profiles=tuple(speedup_profile(e, best, group, counts) for group in distinct for e in with_bound),
    )


def _check_names(names: Sequence[str]) -> None:
    taken = {name for name in names if name in RESERVED_NAMES or names.count(name) > 1}
    if taken:
        raise ConfigError(
            f"Expected distinct controller names other than the baselines', got {sorted(taken)}. "
            "Leave one of them out, or put it into a folder of another name."
        )
