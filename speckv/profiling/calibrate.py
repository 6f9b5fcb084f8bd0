# SPDX-License-Identifier: Apache-2.0
"""Measures what a draft pass, a verify pass and a decision cost on this machine, and writes a cost table.

Passes are timed at each batch and width (`passes`), a decision by itself, and the whole is then held to the wall clock
of live runs (`check`).
"""

import gc
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version

import numpy as np

from speckv.cost import CostEntry, CostFit, CostTable, describe_fit
from speckv.decoding import PromptLookup, RequestContext, draft_source
from speckv.errors import ConfigError, CostTableError
from speckv.models.causal import CausalModel
from speckv.models.kernels import describe_kernel
from speckv.models.linear import dtype_name
from speckv.models.pair import ModelPair, PairConfig, load_pair
from speckv.observation import SCHEMA, History, StaticContext, StepBatch, observe, update_history
from speckv.profiling.check import CheckPlan, check_pair, encode_prompts
from speckv.profiling.lookup_times import time_lookup
from speckv.profiling.machine import describe_machine
from speckv.profiling.pass_times import PassTimes, TimingPlan, entry_of
from speckv.profiling.passes import time_passes
from speckv.types import Controller

logger = logging.getLogger(__name__)
PACKAGES = ("torch", "transformers", "bitsandbytes", "numpy")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationPlan:
    """What to measure.

    Attributes:
        name: Of the table.
        pair: The models; its compression is replaced by each of `compressions`.
        compressions: Of the target.
        timing: Contexts and rounds.
        batches: Sequences that decode together; batch 1 is always among them.
        check: Live runs that the table is held to, or None to leave it unchecked.
        notes: Free text for the table's readers.
    """

    name: str
    pair: PairConfig
    compressions: tuple[str, ...]
    timing: TimingPlan = field(default_factory=TimingPlan)
    batches: tuple[int, ...] = (1,)
    check: CheckPlan | None = None
    notes: str = ""

    def __post_init__(self) -> None:
        """Checks the batches."""
        if 1 not in self.batches or min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            raise ConfigError(f"Expected different batches of at least 1, 1 among them, got {list(self.batches)}.")


def calibrate(
    plan: CalibrationPlan,
    controller: Controller,
    *,
    on_progress: Say | None = None,
    load: Callable[[PairConfig], ModelPair] = load_pair,
    keep: Callable[[CostTable], None] = lambda _: None,
) -> CostTable:
    """Measures every compression and returns a table; run it alone on the machine.

    Args:
        plan: What to measure.
        controller: Whose decision is timed, with observing and remembering.
        on_progress: Called with a line of text before each measurement.
        load: Makes the pair of a config, for models that are not on disk.
        keep: Given what has been measured so far, after each compression and each check: hours of a slow machine are
            not lost to a signal.
    """
    say = on_progress or (lambda _: None)
    entries: dict[str, CostEntry] = {}
    loads: list[CostEntry] = []
    fit: dict[str, CostFit] = {}
    draft_times: Mapping[int, PassTimes] | None = None
    pair: ModelPair | None = None
    controller_s = time_decision(controller)

    def so_far() -> CostTable:
        return CostTable(
            name=plan.name,
            kind="measured",
            machine={
                **describe_machine(pair.target.device if pair else None),
                **{f"version_{name}": version(name) for name in PACKAGES},
            },
            entries=dict(entries),
            controller_s=controller_s,
            notes=plan.notes,
            source=f"python -m speckv calibrate, pair {plan.pair.name or plan.pair.target}, "
            f"batch {'/'.join(map(str, sorted(plan.batches)))}",
            loads=tuple(loads),
            fit=dict(fit),
        )

    for compression in plan.compressions:
        say(f"{compression}: loading")
        pair = None  # free the last target before the next is loaded
        gc.collect()
        pair = load(replace(plan.pair, compression=compression))
        if plan.check is not None:
            encode_prompts(pair, plan.check)
        # A draft made of the target's own layers is compressed as the target is.
        if draft_times is None or plan.pair.draft == "self":
            draft_times = _time_draft(draft_source(pair), plan, say)
        verify_times = _time_model(pair.target, plan, compression, say, drafting=False)
        by_batch = {b: _entry(plan, pair, b, draft_times[b], verify_times[b]) for b in sorted(plan.batches)}
        entries[compression] = by_batch.pop(1)
        loads += by_batch.values()
        keep(so_far())
        if plan.check is not None:
            say(f"{compression}: decoding {len(plan.check.prompts)} prompts live to check the times")
            fit[compression] = _check(plan.check, pair, entries[compression])
            keep(so_far())
            say(f"{compression}: total time {describe_fit('measured', fit[compression])}")
    return so_far()


def _time_draft(draft: CausalModel | PromptLookup, plan: CalibrationPlan, say: Say) -> dict[int, PassTimes]:
    """Times of what drafts at every batch; a lookup is one request's own, whatever runs beside it."""
    if not isinstance(draft, PromptLookup):
        return _time_model(draft, plan, "draft", say, drafting=True)
    say(f"draft, {draft.name}")
    return dict.fromkeys(plan.batches, time_lookup(draft, plan.timing))


def _time_model(
    model: CausalModel, plan: CalibrationPlan, name: str, say: Say, *, drafting: bool
) -> dict[int, PassTimes]:
    """Times of one model at every batch."""
    found = {}
    for batch in sorted(plan.batches):
        say(f"{name}, {dtype_name(model.dtype)}, batch {batch}: widths 1 to {plan.timing.widths[-1]}")
        found[batch] = time_passes(model, plan.timing, batch=batch, drafting=drafting)
    return found


def _entry(plan: CalibrationPlan, pair: ModelPair, batch: int, draft: PassTimes, verify: PassTimes) -> CostEntry:
    target, drafter = pair.target, draft_source(pair)
    return entry_of(
        draft,
        verify,
        plan.timing,
        compression=target.compression,
        dtype=dtype_name(target.dtype),
        batch=batch,
        kernel=describe_kernel(target.compression, target.dtype, target.device),
        draft_kernel=drafter.name
        if isinstance(drafter, PromptLookup)
        else describe_kernel(drafter.compression, drafter.dtype, drafter.device),
    )


def _check(plan: CheckPlan, pair: ModelPair, entry: CostEntry) -> CostFit:
    alone = CostTable(name="measured now", kind="measured", machine={}, entries={entry.compression: entry})
    return check_pair(alone, pair, plan)


def with_lookup_times(table: CostTable, lookup: PromptLookup, plan: CalibrationPlan) -> CostTable:
    """A table with a lookup in place of its draft; the target's times stay, and no model runs.

    Args:
        table: Measured with any draft, on this machine.
        lookup: Its lengths of a match.
        plan: Name, timing and notes.

    Raises:
        CostTableError: if the table was not taken at the plan's reference context.
    """
    reference, far = plan.timing.reference_context, plan.timing.far_context
    others = sorted({entry.reference_context for entry in table.entries.values()} - {reference})
    if others:
        raise CostTableError(f"Expected times at reference_context={others[0]}, got {reference}. Say so.")
    times = time_lookup(lookup, plan.timing)

    def drafted_by_lookup(entry: CostEntry) -> CostEntry:
        return replace(
            entry,
            draft_widths=times.widths,
            draft_s=times.seconds,
            draft_context_slope_s=times.slope_s,
            draft_kernel=lookup.name,
        )

    return replace(
        table,
        name=plan.name,
        entries={name: drafted_by_lookup(entry) for name, entry in table.entries.items()},
        loads=tuple(drafted_by_lookup(entry) for entry in table.loads),
        fit={},
        notes=plan.notes
        or f"Target and decisions as in {table.name}; draft passes are those of {lookup.name}, reading and proposing "
        f"timed alone at contexts {reference} and {far}, medians of {plan.timing.repeats}, on "
        f"{describe_machine()['processor']}.",
        source=f"python -m speckv calibrate from={table.name} model.draft=lookup",
    )


def time_decision(controller: Controller, repeats: int = 500) -> float:
    """Median seconds of one observation, decision and update of the memory."""
    context = RequestContext(compression="fp16", cost_ratio=0.3)
    static = StaticContext.of([context.compression], {context.compression: context.cost_ratio}, [128])
    history = History.start(1, 0.5, 0.9)
    step = StepBatch(
        num_drafted=np.array([4]),
        num_accepted=np.array([2]),
        num_emitted=np.array([0]),
        tested=np.full((1, 6), 0.5, np.float32),
        target=np.full((1, 2), 0.5, np.float32),
    )
    assert observe(history, static).shape == (1, SCHEMA.size)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        controller.act(observe(history, static)[0])
        history = update_history(history, step)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))
