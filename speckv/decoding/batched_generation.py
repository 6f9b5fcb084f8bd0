# SPDX-License-Identifier: Apache-2.0
"""Drives the batch engine with a controller until many requests end, some running and the others waiting."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from speckv.decoding.batched import BatchEngine
from speckv.decoding.batched_control import control
from speckv.decoding.generation import GenerationResult, RequestContext
from speckv.decoding.step import DecodeStep
from speckv.errors import ConfigError, device_errors_explained
from speckv.observation import History, StaticContext, StepBatch, observe, summarise_tested, update_history
from speckv.types import Controller, FloatArray, IntArray

BatchContext = RequestContext | Callable[[int], RequestContext]
"""What a controller is told about every request; or number of running requests -> the same, for costs that depend on
the load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """Many finished requests.

    Attributes:
        results: One a request, in their order. A request's `decode_s` is the time that it was decoded for, beside
            others: the sum of whole steps. Over requests it sums to nothing; `decode_s` below counts every step once.
        running: Requests that took part in each step of the batch, in order.
        decode_s: Seconds of all steps, decisions included, prefills not.
        prefill_s: Seconds of all prefills.
        controller_s: Seconds of `decode_s` spent on observing and deciding.
    """

    results: tuple[GenerationResult, ...]
    running: tuple[int, ...]
    decode_s: float
    prefill_s: float
    controller_s: float

    @property
    def num_tokens(self) -> int:
        """Tokens that decode steps emitted, over all requests; the prefills' are not counted."""
        return sum(step.outcome.num_emitted for result in self.results for step in result.steps)

    @property
    def tokens_per_s(self) -> float:
        """Those tokens per second of decoding, over the whole batch; 0 if there was no step."""
        return self.num_tokens / self.decode_s if self.decode_s > 0 else 0.0

    @property
    def mean_gamma(self) -> float:
        """Speculation length that the controller asked for, over all requests' steps; 0 if there was none."""
        gammas = [gamma for result in self.results for gamma in result.gammas]
        return sum(gammas) / len(gammas) if gammas else 0.0


@dataclass(slots=True, kw_only=True)
class _Request:
    """A request as it is decoded."""

    prefill: DecodeStep | None = None
    steps: list[DecodeStep] = field(default_factory=list)
    gammas: list[int] = field(default_factory=list)
    controller_s: float = 0.0
    between_s: float = 0.0

    def result(self) -> GenerationResult:
        assert self.prefill is not None
        last = self.steps[-1] if self.steps else self.prefill
        assert last.outcome.finish is not None
        return GenerationResult(
            tokens=sum((step.tokens for step in self.steps), self.prefill.tokens),
            finish=last.outcome.finish,
            prefill=self.prefill,
            steps=tuple(self.steps),
            gammas=tuple(self.gammas),
            decode_s=sum(step.outcome.seconds for step in self.steps) + self.between_s,
            controller_s=self.controller_s,
        )


@device_errors_explained()
def generate_batch(
    engine: BatchEngine,
    prompts: Sequence[Sequence[int]],
    controller: Controller,
    *,
    context: BatchContext,
    max_new_tokens: int | Sequence[int],
    requests: Sequence[str] = (),
    max_running: int | None = None,
    on_step: Callable[[int, DecodeStep], None] | None = None,
) -> BatchResult:
    """Decodes many requests, asking the controller for a gamma of each running one before every step.

    Args:
        engine: Holds the models; any requests that it was decoding are dropped.
        prompts: Token ids.
        controller: Sees each request as it would alone; one that remembers requests is copied for each (see
            `batched_control.control`).
        context: See `BatchContext`.
        max_new_tokens: Token budget, one for all or one a request.
        requests: Name them for the sampling seed; numbers from "0" on by default.
        max_running: Most requests that run together, all by default. The others wait, and join in order as others end.
        on_step: Called with a request's index and its prefill's step or a decode step, to stream.

    Raises:
        BudgetError: if a prompt does not fit; what was decoded is lost.
        ConfigError: if there is no prompt, not one name or budget a prompt, or the controller cannot decide in a batch.
        DeviceError: if a device runs out of memory or is lost.
    """
    most = len(prompts) if max_running is None else max_running
    budgets = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    names = list(requests or map(str, range(len(prompts))))
    if not prompts or most < 1 or not len(prompts) == len(budgets) == len(names):
        raise ConfigError(
            f"Expected at least one prompt, a name and a budget for each, and max_running of at least 1, got "
            f"{len(prompts)} prompts, {len(names)} names, {len(budgets)} budgets and max_running={max_running}."
        )
    deciders = control(controller, most)
    batch = _Batch(len(prompts), budgets, context)
    begin, waiting, prefill_s = engine.start, list(range(len(prompts))), 0.0
    while waiting or batch.running:
        while waiting and len(batch.running) < most:
            free = most - len(batch.running)
            joining, waiting = waiting[:free], waiting[free:]
            steps = begin(
                [prompts[i] for i in joining],
                max_new_tokens=[budgets[i] for i in joining],
                requests=[names[i] for i in joining],
            )
            begin, prefill_s = engine.admit, prefill_s + steps[0].outcome.seconds
            deciders.begin(joining)
            batch.join(dict(zip(joining, steps, strict=True)))
            _report(on_step, joining, steps)
        if not batch.running:
            break
        rows, asked = list(batch.running), time.perf_counter()
        observations = batch.observe()
        gammas = deciders.act(rows, observations)
        before_s = time.perf_counter() - asked
        steps = engine.step(gammas, deciders.at(rows, observations))
        stepped = time.perf_counter()
        deciders.learn(rows, [step.outcome for step in steps])
        batch.take(rows, gammas, steps)
        batch.charge(rows, before_s + time.perf_counter() - stepped, deciders.take_seconds())
        _report(on_step, rows, steps)
    return batch.result(prefill_s)


class _Batch:
    """What is remembered of all requests, running or not; a request's index is its row in the history."""

    def __init__(self, num_requests: int, budgets: Sequence[int], context: BatchContext) -> None:
        self.running: list[int] = []
        self._requests = [_Request() for _ in range(num_requests)]
        self._history = History.start(num_requests, 0.0, 1.0)
        self._budgets, self._context = budgets, context
        self._statics: dict[int, StaticContext] = {}
        self._counts: list[int] = []
        self._step_s = self._between_s = self._controller_s = 0.0

    def join(self, prefills: Mapping[int, DecodeStep]) -> None:
        """Starts requests."""
        for i, step in prefills.items():
            target = [[step.outcome.target_entropy, step.outcome.target_confidence]]
            self._history.restart(np.array([i]), np.array(target, np.float32))
            self._requests[i].prefill = step
        self.running += [i for i, step in prefills.items() if step.outcome.finish is None]

    def observe(self) -> FloatArray:
        """Shape [running, features]."""
        load = len(self.running)
        if load not in self._statics:
            context = self._context(load) if callable(self._context) else self._context
            names = [context.compression] * len(self._budgets)
            self._statics[load] = StaticContext.of(names, {context.compression: context.cost_ratio}, self._budgets)
        return observe(self._history, self._statics[load])[self.running]

    def take(self, rows: Sequence[int], gammas: Sequence[int], steps: Sequence[DecodeStep]) -> None:
        """Takes in a step of the running requests, and lets those go that ended."""
        self._history = update_history(self._history, _as_batch(len(self._requests), rows, steps))
        for i, gamma, step in zip(rows, gammas, steps, strict=True):
            self._requests[i].steps.append(step)
            self._requests[i].gammas.append(gamma)
        self.running = [i for i, step in zip(rows, steps, strict=True) if step.outcome.finish is None]
        self._counts.append(len(rows))
        self._step_s += steps[0].outcome.seconds

    def charge(self, rows: Sequence[int], between_s: float, inside_s: float) -> None:
        """Counts the time of decisions, between steps, which is no part of any, and inside a step, which is."""
        for i in rows:
            self._requests[i].between_s += between_s
            self._requests[i].controller_s += between_s + inside_s
        self._between_s += between_s
        self._controller_s += between_s + inside_s

    def result(self, prefill_s: float) -> BatchResult:
        """All requests, ended."""
        return BatchResult(
            results=tuple(request.result() for request in self._requests),
            running=tuple(self._counts),
            decode_s=self._step_s + self._between_s,
            prefill_s=prefill_s,
            controller_s=self._controller_s,
        )


def _report(
    on_step: Callable[[int, DecodeStep], None] | None, rows: Sequence[int], steps: Sequence[DecodeStep]
) -> None:
    if on_step is not None:
        for i, step in zip(rows, steps, strict=True):
            on_step(i, step)


def _as_batch(num_requests: int, rows: Sequence[int], steps: Sequence[DecodeStep]) -> StepBatch:
    """Steps of some requests among all; the past of the others does not matter: it is over or begins when they join."""
    outcomes = [step.outcome for step in steps]

    def spread(values: Sequence[int]) -> IntArray:
        out = np.zeros(num_requests, np.int64)
        out[list(rows)] = values
        return out

    tested = np.zeros((num_requests, 6), np.float32)
    target = np.zeros((num_requests, 2), np.float32)
    for i, outcome in zip(rows, outcomes, strict=True):
        tested[i] = summarise_tested(outcome.draft_signals[np.newaxis], [outcome.num_tested])[0]
        target[i] = outcome.target_entropy, outcome.target_confidence
    return StepBatch(
        num_drafted=spread([o.num_drafted for o in outcomes]),
        num_accepted=spread([o.num_accepted for o in outcomes]),
        num_emitted=spread([o.num_emitted for o in outcomes]),
        tested=tested,
        target=target,
    )
