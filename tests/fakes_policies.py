# SPDX-License-Identifier: Apache-2.0
"""Controllers that say what a test wants, and keep what they were shown; controllers as run folders."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from speckv.observation import STOPPING_SCHEMA
from speckv.runtime import Policy
from speckv.runtime.storage import RUN_POLICY
from speckv.types import Controller, FloatArray, IntArray, StepOutcome

CONFIDENCE = STOPPING_SCHEMA.index("token_confidence")


def store(folder: Path, controller: Controller) -> None:
    """Stores a controller as a run folder holds it."""
    Policy.of(controller).save(folder / RUN_POLICY)


class Scheduled:
    """Says what `gamma` gives at each step of a request; sessions share it, so that nothing that it saw is lost.

    Attributes:
        seen: Observations, one list a request.
        chosen: Gammas, likewise.
        outcomes: What it was told of, likewise.
    """

    name = "scheduled"
    charges_decision = False
    learns = True

    def __init__(self, gamma: Callable[[int], int]) -> None:
        self.gamma = gamma
        self.seen: list[list[FloatArray]] = []
        self.chosen: list[list[int]] = []
        self.outcomes: list[list[StepOutcome]] = []

    def __deepcopy__(self, memo: object) -> "Scheduled":
        return self

    @staticmethod
    def turns(*gammas: int) -> "Scheduled":
        """Says gammas in turn, from the first one on for each request."""
        return Scheduled(lambda step: gammas[step % len(gammas)])

    @staticmethod
    def random(seed: int, largest: int = 6) -> "Scheduled":
        """Draws gammas, 0 among them."""
        rng = np.random.default_rng(seed)
        return Scheduled(lambda _: int(rng.integers(0, largest + 1)))

    def reset(self) -> None:
        if not self.seen or self.seen[-1]:
            for kept in (self.seen, self.chosen, self.outcomes):
                kept.append([])

    def act(self, observation: FloatArray) -> int:
        self.seen[-1].append(observation.copy())
        self.chosen[-1].append(self.gamma(len(self.chosen[-1])))
        return self.chosen[-1][-1]

    def act_batch(self, observations: FloatArray) -> IntArray:
        raise NotImplementedError

    def learn(self, outcome: StepOutcome) -> None:
        self.outcomes[-1].append(outcome)


class StopsUnsure(Scheduled):
    """Drafts on while the newest token is likely enough, `gamma` tokens at most, which is 8 unless given."""

    name = "stops-unsure"

    def __init__(self, least: float = 0.5, gamma: Callable[[int], int] = lambda _: 8) -> None:
        super().__init__(gamma)
        self.least = least

    def go_on(self, observation: FloatArray) -> bool:
        return bool(observation[CONFIDENCE] >= self.least)

    def go_on_batch(self, observations: FloatArray) -> IntArray:
        raise NotImplementedError
