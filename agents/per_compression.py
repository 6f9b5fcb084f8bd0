# SPDX-License-Identifier: Apache-2.0
"""One controller for each compression, which allows tuning a rule as the best fixed gamma is tuned."""

from collections.abc import Mapping

import numpy as np

from speckv.agents.rules.base import Rule
from speckv.runtime.constant import NearestCompression
from speckv.types import (
    Abstainer,
    BatchMemory,
    BoolArray,
    Controller,
    DecodedSteps,
    FloatArray,
    IntArray,
    StoppingController,
)


class PerCompression(Rule):
    """Decides by the controller of the observation's compression; all are of one kind."""

    def __init__(self, controllers: Mapping[str, Controller], *, name: str) -> None:
        super().__init__(name)
        assert controllers
        self.controllers = dict(controllers)
        self.charges_decision = any(c.charges_decision for c in controllers.values())
        self._parts = list(controllers.values())
        self._row = NearestCompression(controllers)
        self.reset()

    def start(self, num_requests: int) -> None:
        """Begins that many requests with every controller; each keeps the memory of all."""
        for part in self._parts:
            part.reset()
            if isinstance(part, BatchMemory):
                part.start(num_requests)

    def never_drafts(self, compression: str) -> bool:
        """Whether the controller of a compression never drafts there."""
        part = self._parts[self._row.of_name(compression)]
        return isinstance(part, Abstainer) and part.never_drafts(compression)

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the decision of each request's controller."""
        answers = np.stack([part.act_batch(observations) for part in self._parts])
        chosen: IntArray = answers[self._row.of_each(observations), np.arange(len(observations))]
        return chosen

    def remember(self, step: DecodedSteps, where: BoolArray) -> None:
        """Passes the step to every controller."""
        for part in self._parts:
            if isinstance(part, BatchMemory):
                part.remember(step, where)


class StoppingPerCompression(PerCompression):
    """`PerCompression` for controllers some of which also decide inside steps; the others always go on."""

    def go_on(self, observation: FloatArray) -> bool:
        """Returns whether to draft another token in the only request."""
        return bool(self.go_on_batch(observation[np.newaxis])[0])

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """Returns the decision of each request's controller."""
        always = np.ones(len(observations), np.bool_)
        answers = np.stack(
            [p.go_on_batch(observations) if isinstance(p, StoppingController) else always for p in self._parts]
        )
        chosen: BoolArray = answers[self._row.of_each(observations), np.arange(len(observations))]
        return chosen
