# SPDX-License-Identifier: Apache-2.0
"""Measures the times of passes and decisions on this machine as a cost table, and checks it against live decoding.

The check predicts the time of each live run from its steps. Its error is what the table leaves out: moving caches,
attention that is not linear, a machine whose speed has changed.
"""

import gc
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version

import numpy as np

from speckv.cost import CostEntry, CostFit, CostTable, describe_fit
from speckv.decoding import (
    DecodeStep,
    Engine,
    GenerationResult,
    PromptLookup,
    RequestContext,
    draft_source,
    generate,
)
from speckv.decoding.clock import device_clock
from speckv.errors import ConfigError, CostTableError
from speckv.models.causal import CausalModel
from speckv.models.dtypes import dtype_name
from speckv.models.kernels import describe_kernel
from speckv.models.pair import ModelPair, PairConfig, load_pair
from speckv.observation import SCHEMA, History, StaticContext, StepBatch, observe, update_history
from speckv.profiling.machine import describe_machine
from speckv.profiling.passes import pass_s, time_lookup, time_passes
from speckv.profiling.timing import PassTimes, RandomGamma, TimingPlan, entry_of, fit_of_runs
from speckv.runtime.constant import ConstantGamma
from speckv.types import GAMMA_MAX, Controller, IntArray, StoppingController

logger = logging.getLogger(__name__)
PACKAGES = ("torch", "transformers", "bitsandbytes", "numpy")
_LONG_S = 10.0
"""A measurement that takes longer reports its rounds."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPlan:
    """Live runs: each prompt with each constant gamma and with a random schedule."""

    prompts: tuple[str, ...]
    gammas: tuple[int, ...] = (0, 2, 5)
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not self.prompts:
            raise ConfigError("Expected at least one prompt to check a cost table on, got none.")
        if self.max_new_tokens < 2:
            raise ConfigError(f"Expected check_tokens of at least 2, got {self.max_new_tokens}.")
        if not all(0 <= gamma <= GAMMA_MAX for gamma in self.gammas):
            raise ConfigError(f"Expected check_gammas from 0 to {GAMMA_MAX}, got {list(self.gammas)}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationPlan:
    """What to measure: a pair with its target at each of `compressions`; `batches` are different ones, with 1."""

    name: str
    pair: PairConfig
    compressions: tuple[str, ...]
    timing: TimingPlan = field(default_factory=TimingPlan)
    batches: tuple[int, ...] = (1,)
    check: CheckPlan | None = None
    notes: str = ""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if 1 not in self.batches or min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            raise ConfigError(f"Expected different batches of at least 1, 1 among them, got {list(self.batches)}.")


def calibrate(
    plan: CalibrationPlan,
    controller: Controller,
    *,
    on_progress: Say | None = None,
    load: Callable[[PairConfig], ModelPair] = load_pair,
    keep: Callable[[CostTable], None] = lambda _: None,
    begun: CostTable | None = None,
) -> CostTable:
    """Measures every compression, and a decision of the controller; nothing else should run on the machine.

    The timed decision includes observation and update of the history.

    Args:
        on_progress: Receives a line of text before and during each measurement.
        keep: Receives the table so far after each compression and each check.
        begun: A table so far, whose compressions are not measured again.
    """
    say = on_progress or (lambda _: None)
    entries, loads, fit = _so_far(begun, plan)
    for compression in entries:
        say(f"{compression}: measured before")
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
            source=f"speckv calibrate, pair {plan.pair.name or plan.pair.target}, "
            f"batch {'/'.join(map(str, sorted(plan.batches)))}",
            loads=tuple(loads),
            fit=dict(fit),
        )

    missing = [compression for compression in plan.compressions if compression not in entries]
    for number, compression in enumerate(missing):
        say(f"{compression}: loading")
        pair = None  # free the last target before the next is loaded
        gc.collect()
        pair = load(replace(plan.pair, compression=compression))
        if plan.check is not None:
            encode_prompts(pair, plan.check)  # fails before anything is measured
        seconds = forecast_s(pair, plan)
        several = f", {_duration(seconds * len(missing))} for {', '.join(missing)}" if len(missing) > 1 else ""
        if not number:
            say(f"this takes about {_duration(seconds)} for {compression}{several}; what is measured is kept")
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


def _so_far(
    begun: CostTable | None, plan: CalibrationPlan
) -> tuple[dict[str, CostEntry], list[CostEntry], dict[str, CostFit]]:
    if begun is None:
        return {}, [], {}
    done = [name for name in begun.entries if plan.check is None or name in begun.fit]
    loads = [entry for entry in begun.loads if entry.compression in done]
    fit = {name: value for name, value in begun.fit.items() if name in done}
    return {name: begun.entries[name] for name in done}, loads, fit


def forecast_s(pair: ModelPair, plan: CalibrationPlan) -> float:
    """Rough time of a compression's measurements, from single passes of the narrowest and the widest kind."""
    timing, seconds, step_s = plan.timing, 0.0, 0.0
    models: list[CausalModel | PromptLookup] = [draft_source(pair), pair.target]
    for model in models:
        if isinstance(model, PromptLookup):
            continue
        ends = [pass_s(model, width) for width in (1, timing.widths[-1])]
        widths = [*timing.widths, *timing.anchors]
        round_s = float(np.interp(widths, (1, timing.widths[-1]), ends).sum()) * sum(plan.batches)
        contexts = (timing.reference_context + timing.far_context) / timing.widths[-1]
        seconds += round_s * (timing.warmups + timing.repeats) + contexts * ends[1] * len(plan.batches)
        step_s += ends[0]
    if plan.check is not None:
        runs = len(plan.check.prompts) * (len(plan.check.gammas) + 1)
        seconds += runs * plan.check.max_new_tokens * step_s
    return seconds


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(seconds, 1):.0f} s"


def _time_draft(draft: CausalModel | PromptLookup, plan: CalibrationPlan, say: Say) -> dict[int, PassTimes]:
    if not isinstance(draft, PromptLookup):
        return _time_model(draft, plan, "draft", say, drafting=True)
    say(f"draft, {draft.name}")
    return dict.fromkeys(plan.batches, time_lookup(draft, plan.timing))  # does not depend on the batch


def _time_model(
    model: CausalModel, plan: CalibrationPlan, name: str, say: Say, *, drafting: bool
) -> dict[int, PassTimes]:
    found = {}
    for batch in sorted(plan.batches):
        what = f"{name}, {dtype_name(model.dtype)}, batch {batch}: widths 1 to {plan.timing.widths[-1]}"
        say(what)
        report = partial(_report_round, say, what)
        found[batch] = time_passes(model, plan.timing, batch=batch, drafting=drafting, on_round=report)
    return found


def _report_round(say: Say, what: str, done: int, rounds: int, seconds: float) -> None:
    left = (rounds - done) * seconds / done
    if left >= _LONG_S:
        say(f"{what}: round {done} of {rounds}, about {_duration(left)} left")


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


def with_lookup_times(table: CostTable, lookup: PromptLookup, plan: CalibrationPlan) -> CostTable:
    """A table of this machine with its draft replaced by a lookup; no model runs."""
    reference, far = plan.timing.reference_context, plan.timing.far_context
    others = sorted({entry.reference_context for entry in table.entries.values()} - {reference})
    if others:
        raise CostTableError(
            f"Expected times at reference_context={others[0]}, got {reference}. Give reference_context={others[0]}."
        )
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
        source=f"speckv calibrate from={table.name} model.draft=lookup",
    )


def time_decision(controller: Controller, repeats: int = 500) -> float:
    """Median seconds of one observation, decision and update of the history."""
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


def _check(plan: CheckPlan, pair: ModelPair, entry: CostEntry) -> CostFit:
    table = CostTable(name="measured now", kind="measured", machine={}, entries={entry.compression: entry})
    clock = device_clock(pair.target.device)
    engine = Engine(pair.target, pair.draft, eos_token_ids=pair.eos_token_ids, clock=clock)
    return check_engine(table, entry.compression, engine, encode_prompts(pair, plan), plan)


def encode_prompts(pair: ModelPair, plan: CheckPlan) -> list[list[int]]:
    """Token ids of the prompts; a `ConfigError` if one and its output do not fit the models."""
    limit = min(pair.target.context_limit, pair.draft.context_limit) - plan.max_new_tokens
    prompts = [pair.encode(text) for text in plan.prompts]
    for text, prompt in zip(plan.prompts, prompts, strict=True):
        if not 1 <= len(prompt) <= limit:
            raise ConfigError(
                f"Expected check prompts of 1 to {limit} tokens, got {len(prompt)} in {text[:40]!r}. "
                "Name other prompts in check_prompts, or set check=false."
            )
    return prompts


def check_engine(
    table: CostTable, compression: str, engine: Engine, prompts: Sequence[Sequence[int]], plan: CheckPlan
) -> CostFit:
    """Decodes every prompt with every schedule, in an order that rotates; `plan.prompts` is ignored."""
    context = RequestContext(compression=compression, cost_ratio=table.cost_ratio(compression))
    arms: list[Controller] = [ConstantGamma(gamma) for gamma in plan.gammas]
    arms.append(RandomGamma(max((*plan.gammas, 1))))
    predicted: list[float] = []
    measured: list[float] = []
    tokens = 0
    engine.capture_ahead(max(map(len, prompts), default=0) + plan.max_new_tokens)
    for arm in arms:  # warm up: first calls of each width allocate and choose kernels
        generate(engine, prompts[0], arm, context=context, max_new_tokens=min(8, plan.max_new_tokens))
    for number, prompt in enumerate(prompts):
        first = number % len(arms)
        for arm in arms[first:] + arms[:first]:
            run = generate(engine, prompt, arm, context=context, max_new_tokens=plan.max_new_tokens)
            if run.steps:
                predicted.append(predicted_seconds(table, compression, len(prompt), run, arm))
                measured.append(measured_seconds(run, arm))
                tokens += sum(step.outcome.num_emitted for step in run.steps)
    return fit_of_runs(predicted, measured, prompts=len(prompts), tokens=tokens)


def predicted_seconds(
    table: CostTable, compression: str, prompt_len: int, run: GenerationResult, controller: Controller
) -> float:
    """The table's time for the steps of a run, with decisions where the controller charges them."""
    drafted, lags, contexts = step_counts(prompt_len, run.steps)
    seconds = float(table.step_seconds(compression, drafted, lags, contexts).sum())
    if not controller.charges_decision:
        return seconds
    # A controller that stops inside steps decides once for each drafted token.
    decisions = np.maximum(drafted, 1) if isinstance(controller, StoppingController) else np.ones_like(drafted)
    return seconds + table.controller_s * int(decisions.sum())


def measured_seconds(run: GenerationResult, controller: Controller) -> float:
    """Seconds of a run, without decisions where the controller does not charge them."""
    return run.decode_s if controller.charges_decision else sum(step.outcome.seconds for step in run.steps)


def step_counts(prompt_len: int, steps: Sequence[DecodeStep]) -> tuple[IntArray, IntArray, IntArray]:
    """Arguments of `CostTable.step_seconds` for each step of a run: tokens drafted, the draft's lag, context."""
    history = History.start(1, 0.0, 0.0)
    rows = []
    for step in steps:
        rows.append((step.outcome.num_drafted, int(history.draft_lag[0]), prompt_len + int(history.emitted[0])))
        history = update_history(history, StepBatch.from_outcome(step.outcome))
    drafted, lags, contexts = np.array(rows, np.int64).reshape(-1, 3).T
    return drafted, lags, contexts
