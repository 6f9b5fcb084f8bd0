# SPDX-License-Identifier: Apache-2.0
"""Decodes many requests with one controller: some are running, the others wait."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from speckv.decoding.engine import BatchEngine
from speckv.decoding.generation import GenerationResult, RequestContext, RequestRecord
from speckv.decoding.loop import GoOnRows
from speckv.decoding.request import DecodeStep
from speckv.errors import ConfigError, device_errors_explained
from speckv.observation import (
    History,
    StaticContext,
    StepBatch,
    observe,
    observe_draft,
    summarise_draft,
    update_history,
)
from speckv.types import (
    BatchMemory,
    BoolArray,
    Controller,
    FloatArray,
    IntArray,
    OnlineLearner,
    StepOutcome,
    StoppingController,
)

BatchContext = RequestContext | Callable[[int], RequestContext]
"""The context of every request; or number of running requests -> context, for costs that depend on the load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """Many finished requests.

    Attributes:
        results: In the order of the prompts. Each `decode_s` counts whole shared steps, so they must not be added.
        running: Requests that took part in each step of the batch.
        decode_s: Each step counted once; decisions included, prefills not.
        controller_s: The part of `decode_s` spent on observing and deciding.
    """

    results: tuple[GenerationResult, ...]
    running: tuple[int, ...]
    decode_s: float
    prefill_s: float
    controller_s: float

    @property
    def num_tokens(self) -> int:
        """Tokens emitted by decode steps; those of prefills are not counted."""
        return sum(step.outcome.num_emitted for result in self.results for step in result.steps)

    @property
    def tokens_per_s(self) -> float:
        """`num_tokens` per second of decoding; 0 if there was no step."""
        return self.num_tokens / self.decode_s if self.decode_s > 0 else 0.0

    @property
    def mean_gamma(self) -> float:
        """Mean of the chosen gammas; 0 if there was no step."""
        gammas = [gamma for result in self.results for gamma in result.gammas]
        return sum(gammas) / len(gammas) if gammas else 0.0


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
    """Decodes many requests; the controller chooses a gamma for each running one, as it would alone.

    Args:
        engine: Its running requests are dropped.
        requests: Names for the sampling seed; numbers from "0" on by default.
        max_running: All by default. Waiting requests join in order as others end.
        on_step: Called with a request's index and each of its steps, the prefill's first.

    Raises:
        BudgetError: if a prompt does not fit; what was decoded is lost.
        ConfigError: if prompts, names and budgets differ in number, or the controller cannot decide in a batch.
        DeviceError: if the device runs out of memory or is lost.
    """
    most = len(prompts) if max_running is None else max_running
    budgets = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    names = list(requests or map(str, range(len(prompts))))
    if not prompts or most < 1 or not len(prompts) == len(budgets) == len(names):
        raise ConfigError(
            f"Expected at least one prompt, a name and a budget for each, and max_running of at least 1, got "
            f"{len(prompts)} prompts, {len(names)} names, {len(budgets)} budgets and max_running={max_running}."
        )
    decisions = control(controller, most)
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
            decisions.begin(joining)
            batch.join(dict(zip(joining, steps, strict=True)))
            _report(on_step, joining, steps)
        if not batch.running:
            break
        rows, asked = list(batch.running), time.perf_counter()
        observations = batch.observe()
        gammas = decisions.act(rows, observations)
        before_s = time.perf_counter() - asked
        steps = engine.step(gammas, decisions.go_on_at(rows, observations))
        stepped = time.perf_counter()
        decisions.learn(rows, [step.outcome for step in steps])
        batch.take(rows, gammas, steps)
        batch.charge(rows, before_s + time.perf_counter() - stepped, decisions.take_seconds())
        _report(on_step, rows, steps)
    return batch.result(prefill_s)


class _Batch:
    def __init__(self, num_requests: int, budgets: Sequence[int], context: BatchContext) -> None:
        self.running: list[int] = []
        self._num_requests = num_requests
        self._records: dict[int, RequestRecord] = {}
        self._history = History.start(num_requests, 0.0, 1.0)
        self._budgets, self._context = budgets, context
        self._statics: dict[int, StaticContext] = {}
        self._counts: list[int] = []
        self._step_s = self._between_s = self._controller_s = 0.0

    def join(self, prefills: Mapping[int, DecodeStep]) -> None:
        for i, step in prefills.items():
            target = [[step.outcome.target_entropy, step.outcome.target_confidence]]
            self._history.restart(np.array([i]), np.array(target, np.float32))
            self._records[i] = RequestRecord(prefill=step)
        self.running += [i for i, step in prefills.items() if step.outcome.finish is None]

    def observe(self) -> FloatArray:
        load = len(self.running)
        if load not in self._statics:
            context = self._context(load) if callable(self._context) else self._context
            names = [context.compression] * len(self._budgets)
            self._statics[load] = StaticContext.of(names, {context.compression: context.cost_ratio}, self._budgets)
        return observe(self._history, self._statics[load])[self.running]

    def take(self, rows: Sequence[int], gammas: Sequence[int], steps: Sequence[DecodeStep]) -> None:
        self._history = update_history(self._history, _as_batch(self._num_requests, rows, steps))
        for i, gamma, step in zip(rows, gammas, steps, strict=True):
            self._records[i].steps.append(step)
            self._records[i].gammas.append(gamma)
        self.running = [i for i, step in zip(rows, steps, strict=True) if step.outcome.finish is None]
        self._counts.append(len(rows))
        self._step_s += steps[0].outcome.seconds

    def charge(self, rows: Sequence[int], between_s: float, inside_s: float) -> None:
        """Adds decision time; `between_s` is in no step's time, `inside_s` is."""
        for i in rows:
            self._records[i].between_s += between_s
            self._records[i].inside_s += inside_s
        self._between_s += between_s
        self._controller_s += between_s + inside_s

    def result(self, prefill_s: float) -> BatchResult:
        return BatchResult(
            results=tuple(self._records[i].result() for i in range(self._num_requests)),
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
    """Steps of some requests among all; the other rows of the history are not read, or restart before they are."""
    batches = [StepBatch.from_outcome(step.outcome) for step in steps]

    def spread(name: str) -> Any:
        values = np.concatenate([getattr(batch, name) for batch in batches])
        out = np.zeros((num_requests, *values.shape[1:]), values.dtype)
        out[list(rows)] = values
        return out

    return StepBatch(**{field.name: spread(field.name) for field in fields(StepBatch)})


def control(controller: Controller, max_running: int) -> "BatchControl":
    """Makes a controller decide for up to `max_running` requests that run together.

    A controller that remembers requests is copied for each, because a batch call would advance the memory of waiting
    ones. ConfigError for an online learner with more than one: it learns from a step before the next decision.
    """
    controller.reset()
    if isinstance(controller, OnlineLearner) and controller.learns:
        if max_running > 1:
            raise ConfigError(
                f"Expected a controller that does not go on learning for {max_running} requests at once, got "
                f"{controller.name!r}, which learns from one step before it decides on the next. Give max_running=1."
            )
        return _CopyPerRequest(controller, shared=True)
    # A learner that is frozen still remembers its last decision.
    remembers = isinstance(controller, BatchMemory | OnlineLearner)
    return _CopyPerRequest(controller, shared=False) if remembers else BatchControl(controller)


class BatchControl:
    """A controller without memory, which decides for all requests in one call; requests are indices."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self._inside_s = 0.0

    def begin(self, requests: Sequence[int]) -> None:
        """Adds requests."""

    def act(self, requests: Sequence[int], observations: FloatArray) -> list[int]:
        """One gamma for each row of the observations."""
        del requests
        gammas: list[int] = np.asarray(self.controller.act_batch(observations), np.int64).tolist()
        return gammas

    def learn(self, requests: Sequence[int], outcomes: Sequence[StepOutcome]) -> None:
        """Learns from a step of each."""

    def go_on_at(self, requests: Sequence[int], observations: FloatArray) -> GoOnRows | None:
        """The `go_on` of a step that begins with these observations; None if the controller never stops drafts."""
        if not isinstance(self.controller, StoppingController):
            return None

        def go_on(rows: IntArray, signals: FloatArray) -> BoolArray:
            asked = time.perf_counter()
            seen = observe_draft(observations[rows], summarise_draft(signals)[:, -1])
            answers = self._go_on([requests[row] for row in rows], seen)
            self._inside_s += time.perf_counter() - asked
            return answers

        return go_on

    def _go_on(self, requests: Sequence[int], observations: FloatArray) -> BoolArray:
        del requests
        assert isinstance(self.controller, StoppingController)
        return np.asarray(self.controller.go_on_batch(observations), np.bool_)

    def take_seconds(self) -> float:
        """Seconds of decisions inside steps since the last call."""
        seconds, self._inside_s = self._inside_s, 0.0
        return seconds


class _CopyPerRequest(BatchControl):
    def __init__(self, controller: Controller, *, shared: bool) -> None:
        super().__init__(controller)
        self._shared = shared
        self._of: dict[int, Controller] = {}

    def begin(self, requests: Sequence[int]) -> None:
        for request in requests:
            self._of[request] = self.controller if self._shared else copy.deepcopy(self.controller)
            self._of[request].reset()

    def act(self, requests: Sequence[int], observations: FloatArray) -> list[int]:
        return [self._of[request].act(seen) for request, seen in zip(requests, observations, strict=True)]

    def learn(self, requests: Sequence[int], outcomes: Sequence[StepOutcome]) -> None:
        for request, outcome in zip(requests, outcomes, strict=True):
            self._of[request].learn(outcome)
            if outcome.finish is not None:
                del self._of[request]

    def _go_on(self, requests: Sequence[int], observations: FloatArray) -> BoolArray:
        answers = []
        for request, observation in zip(requests, observations, strict=True):
            controller = self._of[request]
            assert isinstance(controller, StoppingController)
            answers.append(controller.go_on(observation))
        return np.array(answers, np.bool_)
