# SPDX-License-Identifier: Apache-2.0
"""A schedule that a cost table is held to, in our own loop and in others'."""

import numpy as np

from speckv.types import FloatArray, IntArray, StepOutcome


class RandomGamma:
    """Draws gamma anew before every step, from 0 to a largest one: a schedule that visits lags and widths."""

    name = "random"
    charges_decision = False

    def __init__(self, largest: int, seed: int = 0) -> None:
        self._largest, self._generator = largest, np.random.default_rng(seed)

    def reset(self) -> None:
        """Nothing to forget."""

    def act(self, observation: FloatArray) -> int:
        """A gamma."""
        del observation
        return int(self._generator.integers(0, self._largest + 1))

    def act_batch(self, observations: FloatArray) -> IntArray:
        """A gamma a row."""
        return self._generator.integers(0, self._largest + 1, len(observations))

    def learn(self, outcome: StepOutcome) -> None:
        """Ignores it."""
