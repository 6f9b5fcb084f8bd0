# SPDX-License-Identifier: Apache-2.0
"""Measures what a draft pass, a verify pass and a decision cost on this machine, and writes a cost table.

A pass is timed as the engine runs it: the model, the signals, the choice of tokens and their way to the host. Widths
are interleaved, so that a slow moment of the machine does not fall on one of them; medians are kept, and their spread.
"""

import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from speckv.cost import CostEntry, CostTable
from speckv.decoding import PromptLookup, RequestContext, draft_source
from speckv.decoding.sampling import SamplingConfig, check_finite, choose, warp_logits
from speckv.decoding.signals import signals
from speckv.errors import CostTableError
from speckv.models.causal import CausalModel
from speckv.models.dtypes import dtype_name
from speckv.models.pair import PairConfig, load_pair
from speckv.observation import SCHEMA, History, StaticContext, StepBatch, observe, update_history
from speckv.profiling.lookup_times import time_lookup
from speckv.profiling.machine import describe_machine
from speckv.traces import GAMMA_MAX
from speckv.types import Controller

logger = logging.getLogger(__name__)
PACKAGES = ("torch", "transformers", "bitsandbytes", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationPlan:
    """What to measure.

    Attributes:
        name: Of the table.
        pair: The models; its compression is replaced by each of `compressions`.
        compressions: Of the target.
        reference_context: Context length at which every width is timed, in tokens.
        far_context: Context length that gives the slope, timed at the narrowest, a middle and the widest pass.
        repeats: Timings a width; the first of each width is dropped.
        notes: Free text for the table's readers.
    """

    name: str
    pair: PairConfig
    compressions: tuple[str, ...]
    reference_context: int = 256
    far_context: int = 1024
    repeats: int = 7
    notes: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTimes:
    """Times of one model.

    Attributes:
        widths: Tokens scored in a pass.
        seconds: Median at the reference context, one a width.
        slope_s: Seconds that a context token adds, one a width, at least 0.
        spread: Interquartile range over median, one a width.
    """

    widths: tuple[int, ...]
    seconds: tuple[float, ...]
    slope_s: tuple[float, ...]
    spread: tuple[float, ...]


def calibrate(
    plan: CalibrationPlan, controller: Controller, *, on_progress: Callable[[str], None] | None = None
) -> CostTable:
    """Measures every compression and returns a table; run it alone on the machine.

    Args:
        plan: What to measure.
        controller: Whose decision is timed, with observing and remembering.
        on_progress: Called with a line of text before each measurement.
    """
    say = on_progress or (lambda _: None)
    entries: dict[str, CostEntry] = {}
    draft_times: PassTimes | None = None
    pair = None
    for compression in plan.compressions:
        say(f"{compression}: loading")
        pair = None  # free the last target before the next is loaded
        gc.collect()
        pair = load_pair(replace(plan.pair, compression=compression))
        if draft_times is None:
            draft = draft_source(pair)
            say(f"draft, {Path(draft.name).name}: widths 1 to {GAMMA_MAX + 1}")
            draft_times = time_passes(draft, plan, last_logits_only=True)
        say(f"{compression}, {dtype_name(pair.target.dtype)}: widths 1 to {GAMMA_MAX + 1}")
        verify = time_passes(pair.target, plan, last_logits_only=False)
        entries[compression] = CostEntry(
            compression=compression,
            dtype=dtype_name(pair.target.dtype),
            reference_context=plan.reference_context,
            draft_widths=draft_times.widths,
            draft_s=draft_times.seconds,
            draft_context_slope_s=draft_times.slope_s,
            verify_widths=verify.widths,
            verify_s=verify.seconds,
            verify_context_slope_s=verify.slope_s,
            spread=verify.spread,
        )
    versions = {f"version_{name}": version(name) for name in PACKAGES}
    return CostTable(
        name=plan.name,
        kind="measured",
        machine={**describe_machine(), **versions},
        entries=entries,
        controller_s=time_decision(controller),
        notes=plan.notes,
        source=f"python -m speckv calibrate, pair {plan.pair.name or plan.pair.target}, batch 1",
    )


def with_lookup_times(table: CostTable, lookup: PromptLookup, plan: CalibrationPlan) -> CostTable:
    """A table with a lookup in place of its draft; the target's times stay, and no model runs.

    Args:
        table: Measured with any draft, on this machine.
        lookup: Its lengths of a match.
        plan: Name, contexts, repeats and notes.

    Raises:
        CostTableError: if the table was not taken at the plan's reference context.
    """
    others = sorted({entry.reference_context for entry in table.entries.values()} - {plan.reference_context})
    if others:
        raise CostTableError(f"Expected times at reference_context={others[0]}, got {plan.reference_context}. Say so.")
    times = time_passes(lookup, plan, last_logits_only=True)
    entries = {
        name: replace(entry, draft_widths=times.widths, draft_s=times.seconds, draft_context_slope_s=times.slope_s)
        for name, entry in table.entries.items()
    }
    return replace(
        table,
        name=plan.name,
        entries=entries,
        notes=plan.notes
        or f"Target and decisions as in {table.name}; draft passes are those of {lookup.name}, reading and proposing "
        f"timed alone at contexts {plan.reference_context} and {plan.far_context}, medians of {plan.repeats}.",
        source=f"python -m speckv calibrate from={table.name} model.draft=lookup",
    )


def time_passes(model: CausalModel | PromptLookup, plan: CalibrationPlan, *, last_logits_only: bool) -> PassTimes:
    """Times one model at widths 1 to gamma_max + 1.

    Args:
        model: Draft or target, or a lookup.
        plan: Contexts and repeats.
        last_logits_only: Whether a pass scores its last token alone, as drafting does.
    """
    widths = tuple(range(1, GAMMA_MAX + 2))
    near = _time_widths(model, widths, plan.reference_context, plan.repeats, last_logits_only)
    anchors = (widths[0], widths[len(widths) // 4], widths[-1])
    far = _time_widths(model, anchors, plan.far_context, max(3, plan.repeats // 2 + 1), last_logits_only)
    medians = {width: float(np.median(near[width])) for width in widths}
    distance = plan.far_context - plan.reference_context
    rises = [max(0.0, (float(np.median(far[w])) - medians[w]) / distance) for w in anchors]
    spread = {width: float(np.subtract(*np.percentile(near[width], [75, 25]))) / medians[width] for width in widths}
    return PassTimes(
        widths=widths,
        seconds=tuple(medians.values()),
        slope_s=_slopes(tuple(medians.values()), widths, anchors, rises, plan.reference_context),
        spread=tuple(spread.values()),
    )


def _slopes(
    seconds: Sequence[float],
    widths: Sequence[int],
    anchors: Sequence[int],
    rises: Sequence[float],
    reference_context: int,
) -> tuple[float, ...]:
    """Slopes of every width from those at a few.

    An empty context must still take time, so a noisy slope is kept at or below half of what would use it all up.

    >>> _slopes((1.0, 1.0, 1.0), (1, 2, 3), (1, 3), (0.01, 0.09), 10)
    (0.01, 0.05, 0.05)
    """
    between = np.interp(widths, anchors, rises)
    return tuple(np.minimum(between, 0.5 * np.array(seconds) / reference_context).tolist())


def _time_widths(
    model: CausalModel | PromptLookup, widths: Sequence[int], context: int, repeats: int, last_logits_only: bool
) -> dict[int, list[float]]:
    if isinstance(model, PromptLookup):
        return time_lookup(model, widths, context, repeats)
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, min(model.vocab_size, 50_000), context + GAMMA_MAX + 1).tolist()
    sequence = model.sequence()
    sequence.extend(tokens[:context], num_logits=1)
    seconds: dict[int, list[float]] = {width: [] for width in widths}
    for repeat in range(repeats + 1):
        for width in widths:
            _synchronise(model)
            start = time.perf_counter()
            logits = sequence.extend(tokens[context : context + width], num_logits=1 if last_logits_only else width)
            _use(logits)
            _synchronise(model)
            if repeat > 0:
                seconds[width].append(time.perf_counter() - start)
            sequence.truncate(context)
    return seconds


def _use(logits: torch.Tensor) -> None:
    """Does with a pass's logits what the engine does."""
    check_finite(logits, "model")
    config = SamplingConfig()
    choose(warp_logits(logits, config), config, None).tolist()
    signals(logits).cpu()


def _synchronise(model: CausalModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


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
