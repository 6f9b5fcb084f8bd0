# SPDX-License-Identifier: Apache-2.0
"""Bases of rules, which decide for a batch of requests; a single request is a batch of one."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from speckv.agents.storing import StoredController
from speckv.observation import STOPPING_SCHEMA
from speckv.types import GAMMA_MAX, BoolArray, DecodedSteps, FloatArray, IntArray, StepOutcome

ENTROPY = STOPPING_SCHEMA.index("token_entropy")
MARGIN = STOPPING_SCHEMA.index("token_margin")
CONFIDENCE = STOPPING_SCHEMA.index("token_confidence")
ALONE = np.ones(1, np.bool_)


class Rule(StoredController, ABC):
    """Chooses gamma before a step."""

    charges_decision = True

    def __init__(self, name: str) -> None:
        self.name = name

    def reset(self) -> None:
        """Begins one request and forgets all others."""
        self.start(1)

    def start(self, num_requests: int) -> None:
        """Begins that many requests and forgets all others."""

    def act(self, observation: FloatArray) -> int:
        """Returns gamma of the only request."""
        return int(self.act_batch(observation[np.newaxis])[0])

    @abstractmethod
    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns gamma of each request."""

    def learn(self, outcome: StepOutcome) -> None:
        """Remembers a step of the only request."""
        self.remember(DecodedSteps.from_outcome(outcome), ALONE)

    def remember(self, step: DecodedSteps, where: BoolArray) -> None:
        """Remembers a step of the requests in `where`."""


class StoppingRule(Rule):
    """Drafts at most `gamma_max` tokens, cut to `GAMMA_MAX`, and decides after each whether to draft another."""

    def __init__(self, name: str, gamma_max: int) -> None:
        super().__init__(name)
        self.gamma_max = min(gamma_max, GAMMA_MAX)

    def act(self, observation: FloatArray) -> int:  # noqa: ARG002 - some rules read it
        """Returns the most tokens to draft in the only request."""
        return self.gamma_max

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the most tokens to draft."""
        return np.full(len(observations), self.gamma_max, np.int64)

    def go_on(self, observation: FloatArray) -> bool:
        """Returns whether to draft another token in the only request."""
        return bool(self.go_on_batch(observation[np.newaxis])[0])

    @abstractmethod
    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """As `go_on` for each request, from observations as `STOPPING_SCHEMA` lists."""


class SignalRule(StoppingRule):
    """Decides whether to draft another token by one signal of the newest one."""

    signal = CONFIDENCE
    """Column of `STOPPING_SCHEMA`."""

    @abstractmethod
    def passes(self, values: Any) -> Any:
        """Whether to draft another token; `values` is the signal as a number, or of shape [requests]."""

    def go_on(self, observation: FloatArray) -> bool:
        """Returns whether to draft another token in the only request; avoids arrays, which take longer."""
        return bool(self.passes(observation[self.signal]))

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """As `go_on` for each request."""
        passed: BoolArray = self.passes(observations[:, self.signal])
        return passed
