# SPDX-License-Identifier: Apache-2.0
"""One learner for requests whose steps interleave, as in a batch: each has its turn, and what is learned is shared."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from speckv.types import (
    BoolArray,
    Controller,
    FloatArray,
    IntArray,
    InterleavedLearner,
    StepOutcome,
    StoppingController,
)


def shared(learner: Controller) -> Controller:
    """Returns what a request uses of a learner: its part, or the learner itself where requests cannot interleave."""
    if not isinstance(learner, InterleavedLearner):
        return learner
    return SharedStoppingSession(learner) if isinstance(learner, StoppingController) else SharedLearnerSession(learner)


class SharedLearnerSession:
    """One request's part of a learner.

    What belongs to the request, such as the choice that the next outcome is about, is taken up before each call and put
    aside behind it, so that no request's outcome is taken for that of another's choice.

    Args:
        learner: Shared.
    """

    def __init__(self, learner: InterleavedLearner) -> None:
        self.name, self.charges_decision = learner.name, learner.charges_decision
        self._learner = learner
        # Of whatever request was at hand; `reset` makes it this one's, and nothing in it may be that one's.
        self._request = copy.deepcopy(learner.save_request())

    @contextmanager
    def _turn(self) -> Iterator[None]:
        self._learner.load_request(self._request)
        try:
            yield
        finally:
            self._request = self._learner.save_request()

    def reset(self) -> None:
        """Begins the request."""
        with self._turn():
            self._learner.reset()

    def act(self, observation: FloatArray) -> int:
        """Returns the learner's gamma."""
        with self._turn():
            return self._learner.act(observation)

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the learner's gamma for each row, as if all were this request's."""
        with self._turn():
            return self._learner.act_batch(observations)

    def learn(self, outcome: StepOutcome) -> None:
        """Lets the learner learn from what this request's last choice led to."""
        with self._turn():
            self._learner.learn(outcome)


class SharedStoppingSession(SharedLearnerSession):
    """The same of a learner that also decides inside steps."""

    _learner: Any

    def go_on(self, observation: FloatArray) -> bool:
        """Returns whether to draft another token."""
        with self._turn():
            return bool(self._learner.go_on(observation))

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """Returns the same for each row, as if all were this request's."""
        with self._turn():
            chosen: BoolArray = self._learner.go_on_batch(observations)
            return chosen
