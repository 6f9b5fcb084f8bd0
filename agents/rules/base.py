# SPDX-License-Identifier: Apache-2.0
"""What rules have in common: many requests at once, a request alone being a batch of one."""

from abc import ABC, abstractmethod

import numpy as np

from agents.storing import StoredController
from speckv.observation import STOPPING_SCHEMA
from speckv.types import GAMMA_MAX, BoolArray, DecodedSteps, FloatArray, IntArray, StepOutcome

ENTROPY = STOPPING_SCHEMA.index("token_entropy")
CONFIDENCE = STOPPING_SCHEMA.index("token_confidence")
ALONE = np.ones(1, np.bool_)


class Rule(StoredController, ABC):
    """Chooses gamma before a step."""

    charges_decision = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.num_requests = 1

    def reset(self) -> None:
        """Begins one request and forgets all others."""
        self.start(1)

    def start(self, num_requests: int) -> None:
        """Begins that many requests and forgets all others."""
        self.num_requests = num_requests

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
    """Drafts at most `gamma_max` tokens, and decides after each of them whether to draft another one.

    Sources that allow more tokens than recordings hold are cut to `GAMMA_MAX`.
    """

    def __init__(self, name: str, gamma_max: int) -> None:
        super().__init__(name)
        self.gamma_max = min(gamma_max, GAMMA_MAX)

    def act(self, observation: FloatArray) -> int:  # noqa: ARG002 - a rule that looks at it says so
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
        """Returns the same for each request, from observations as `STOPPING_SCHEMA` lists."""
