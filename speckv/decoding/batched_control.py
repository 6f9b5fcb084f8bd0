# SPDX-License-Identifier: Apache-2.0
"""One controller for the many requests of a batch, some of which have ended and some not begun."""

import copy
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from speckv.decoding.batched_draft import GoOnRows
from speckv.errors import ConfigError
from speckv.observation import observe_draft, summarise_draft
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


class Deciders(Protocol):
    """Decides for requests, each by its index among all."""

    def begin(self, requests: Sequence[int]) -> None:
        """Requests join."""

    def act(self, requests: Sequence[int], observations: FloatArray) -> list[int]:
        """Gamma of each, from observations of shape [requests, features]."""

    def at(self, requests: Sequence[int], observations: FloatArray) -> GoOnRows | None:
        """What a step asks that began with these observations, or None if nothing is decided inside it."""

    def learn(self, requests: Sequence[int], outcomes: Sequence[StepOutcome]) -> None:
        """Takes in a step of each."""

    def take_seconds(self) -> float:
        """Seconds of decisions inside steps since this was last asked."""


def control(controller: Controller, max_running: int) -> Deciders:
    """Lets a controller decide for requests that run together.

    A controller that looks at observations alone decides for all of them in one call. One that remembers requests is
    copied for each: its requests come and go, and a batch call would move the memory of those that wait.

    Args:
        controller: Any but one that learns from request to request, which has to know what a decision led to before
            it decides again, so that its requests must run one by one.
        max_running: Most requests that run together.

    Raises:
        ConfigError: for such a one, if there is more than one.
    """
    controller.reset()
    if isinstance(controller, OnlineLearner) and controller.learns:
        if max_running > 1:
            raise ConfigError(
                f"Expected a controller that does not go on learning for {max_running} requests at once, got "
                f"{controller.name!r}, which learns from one step before it decides on the next. Give max_running=1."
            )
        return _OneByOne(controller, shared=True)
    # A learner that is frozen still remembers what it decided on last.
    alone = isinstance(controller, BatchMemory | OnlineLearner)
    return _OneByOne(controller, shared=False) if alone else _Together(controller)


class _Timed:
    """Asks a stopping controller inside steps, and keeps the time."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self._seconds = 0.0

    def take_seconds(self) -> float:
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def at(self, requests: Sequence[int], observations: FloatArray) -> GoOnRows | None:
        if not isinstance(self.controller, StoppingController):
            return None

        def go_on(rows: IntArray, signals: FloatArray) -> BoolArray:
            asked = time.perf_counter()
            seen = observe_draft(observations[rows], summarise_draft(signals)[:, -1])
            answers = self.goes_on([requests[row] for row in rows], seen)
            self._seconds += time.perf_counter() - asked
            return answers

        return go_on

    def goes_on(self, requests: Sequence[int], seen: FloatArray) -> BoolArray:
        raise NotImplementedError


class _Together(_Timed):
    """A controller without memory: one call for all."""

    def begin(self, requests: Sequence[int]) -> None:
        """There is nothing to begin."""

    def act(self, requests: Sequence[int], observations: FloatArray) -> list[int]:
        del requests
        gammas: list[int] = np.asarray(self.controller.act_batch(observations), np.int64).tolist()
        return gammas

    def goes_on(self, requests: Sequence[int], seen: FloatArray) -> BoolArray:
        del requests
        assert isinstance(self.controller, StoppingController)
        return np.asarray(self.controller.go_on_batch(seen), np.bool_)

    def learn(self, requests: Sequence[int], outcomes: Sequence[StepOutcome]) -> None:
        """Observations tell all."""


class _OneByOne(_Timed):
    """A controller for each request: a copy, or the only one there is, if requests come one by one."""

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

    def goes_on(self, requests: Sequence[int], seen: FloatArray) -> BoolArray:
        answers = []
        for request, one in zip(requests, seen, strict=True):
            controller = self._of[request]
            assert isinstance(controller, StoppingController)
            answers.append(controller.go_on(one))
        return np.array(answers, np.bool_)

    def learn(self, requests: Sequence[int], outcomes: Sequence[StepOutcome]) -> None:
        for request, outcome in zip(requests, outcomes, strict=True):
            self._of[request].learn(outcome)
            if outcome.finish is not None:
                del self._of[request]
