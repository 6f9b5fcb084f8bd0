# SPDX-License-Identifier: Apache-2.0
"""Decodes one request with a controller."""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import numpy as np

from speckv.decoding.engine import Engine, GoOn
from speckv.decoding.request import DecodeStep
from speckv.errors import device_errors_explained
from speckv.observation import (
    History,
    StaticContext,
    StepBatch,
    observe,
    observe_draft,
    summarise_draft,
    update_history,
)
from speckv.types import Controller, FloatArray, StoppingController


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestContext:
    """Constant inputs of a request's observations; `cost_ratio` is one draft pass over one target pass."""

    compression: str
    cost_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """One finished request.

    Attributes:
        tokens: The output, the prefill's token first.
        decode_s: Decisions included, prefill not.
        controller_s: The part of `decode_s` spent on observing and deciding.
    """

    tokens: tuple[int, ...]
    finish: str
    prefill: DecodeStep
    steps: tuple[DecodeStep, ...]
    gammas: tuple[int, ...]
    decode_s: float
    controller_s: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens of decode steps per second of decoding; 0 if there was no step."""
        emitted = sum(step.outcome.num_emitted for step in self.steps)
        return emitted / self.decode_s if self.decode_s > 0 else 0.0

    @property
    def block_efficiency(self) -> float:
        """Tokens a decode step."""
        return sum(step.outcome.num_emitted for step in self.steps) / max(len(self.steps), 1)


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """A request's steps, and decision time between steps and inside them, where steps count it too."""

    prefill: DecodeStep
    steps: list[DecodeStep] = field(default_factory=list)
    gammas: list[int] = field(default_factory=list)
    between_s: float = 0.0
    inside_s: float = 0.0

    def result(self) -> GenerationResult:
        """The finished request."""
        finish = (self.steps[-1] if self.steps else self.prefill).outcome.finish
        assert finish is not None
        return GenerationResult(
            tokens=sum((step.tokens for step in self.steps), self.prefill.tokens),
            finish=finish,
            prefill=self.prefill,
            steps=tuple(self.steps),
            gammas=tuple(self.gammas),
            decode_s=sum(step.outcome.seconds for step in self.steps) + self.between_s,
            controller_s=self.between_s + self.inside_s,
        )


@device_errors_explained()
def generate(
    engine: Engine,
    prompt: Sequence[int],
    controller: Controller,
    *,
    context: RequestContext,
    max_new_tokens: int,
    request: str = "",
    on_step: Callable[[DecodeStep], None] | None = None,
) -> GenerationResult:
    """Decodes one request; the controller, reset first, chooses gamma before every step as in replay.

    Args:
        engine: Its running request is dropped.
        request: Name, for the sampling seed.
        on_step: Called with every step, the prefill's first.

    Raises:
        BudgetError: if the prompt does not fit.
        ProbabilityError: if a model's scores hold NaN.
        DeviceError: if the device runs out of memory or is lost.
    """
    running = stepwise(engine, prompt, controller, context=context, max_new_tokens=max_new_tokens, request=request)
    while True:
        try:
            step = next(running)
        except StopIteration as ended:
            result: GenerationResult = ended.value
            return result
        if on_step:
            on_step(step)


def stepwise(
    engine: Engine,
    prompt: Sequence[int],
    controller: Controller,
    *,
    context: RequestContext,
    max_new_tokens: int,
    request: str = "",
) -> Generator[DecodeStep, None, GenerationResult]:
    """Yields the steps of `generate`, the prefill's first. The caller's time between two steps is not counted."""
    controller.reset()
    prefill = engine.start(prompt, max_new_tokens=max_new_tokens, request=request)
    yield prefill
    static = StaticContext.of([context.compression], {context.compression: context.cost_ratio}, [max_new_tokens])
    history = History.start(1, prefill.outcome.target_entropy, prefill.outcome.target_confidence)
    record = RequestRecord(prefill=prefill)
    stopper = _Stopper(controller) if isinstance(controller, StoppingController) else None
    while engine.finish is None:
        asked = time.perf_counter()
        observation = observe(history, static)
        gamma = controller.act(observation[0])
        answered = time.perf_counter()
        step = engine.step(gamma, stopper.at(observation) if stopper else None)
        stepped = time.perf_counter()
        controller.learn(step.outcome)
        history = update_history(history, StepBatch.from_outcome(step.outcome))
        record.between_s += answered - asked + time.perf_counter() - stepped
        record.gammas.append(gamma)
        record.steps.append(step)
        yield step
    record.inside_s = stopper.seconds if stopper else 0.0
    return record.result()


class _Stopper:
    def __init__(self, controller: StoppingController) -> None:
        self._controller = controller
        self.seconds = 0.0

    def at(self, observation: FloatArray) -> GoOn:
        def go_on(signals: FloatArray) -> bool:
            asked = time.perf_counter()
            seen = observe_draft(observation, summarise_draft(signals[np.newaxis])[:, -1])
            answer = self._controller.go_on(seen[0])
            self.seconds += time.perf_counter() - asked
            return answer

        return go_on
