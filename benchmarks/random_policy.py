# SPDX-License-Identifier: Apache-2.0
"""A controller that guesses: any gamma before each step, and any end inside it. What it emits must be the same text."""

import numpy as np

from speckv.types import BoolArray, FloatArray, IntArray, StepOutcome


class RandomPolicy:
    """Draws gamma from 0 to `gamma_max` before each step, and stops inside steps at random.

    Args:
        rng: Of every draw.
        gamma_max: In tokens.
        stop: Chance of stopping behind each drafted token; 0 leaves every draft at its gamma.
    """

    charges_decision = False

    def __init__(self, rng: np.random.Generator, *, gamma_max: int = 8, stop: float = 0.0) -> None:
        self.name = "random"
        self._rng, self._gamma_max, self._stop = rng, gamma_max, stop

    def reset(self) -> None:
        """Nothing to forget."""

    def act(self, observation: FloatArray) -> int:  # noqa: ARG002 - it guesses
        """Returns any gamma; every fourth time 0, as plain steps leave the draft behind."""
        return 0 if self._rng.random() < 0.25 else int(self._rng.integers(0, self._gamma_max + 1))

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns any gamma for each row."""
        return np.array([self.act(row) for row in observations], np.int64)

    def learn(self, outcome: StepOutcome) -> None:
        """Learns nothing."""

    def go_on(self, observation: FloatArray) -> bool:  # noqa: ARG002 - it guesses
        """Returns whether to draft another token."""
        return bool(self._rng.random() >= self._stop)

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """Returns the same for each row."""
        return np.array([self.go_on(row) for row in observations], np.bool_)
