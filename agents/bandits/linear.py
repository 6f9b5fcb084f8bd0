# SPDX-License-Identifier: Apache-2.0
"""Contextual bandits with a linear model for each gamma: LinUCB and linear Thompson sampling."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agents.bandits.base import Bandit
from agents.bandits.settings import LinearSettings
from speckv.cost.times import StepTimes
from speckv.types import FloatArray, StepOutcome

Float64 = NDArray[np.float64]

MIN_STD = 1e-3
"""A feature that varies less is a constant and is left in its own units."""
MAX_VARIANCE = 1e3
"""Forgetting lets the variance of directions that are never visited grow without end; a regression that has come here
forgets nothing until what it sees has brought it down again."""


class Features(Protocol):
    """Turns an observation into the input of a linear model."""

    @property
    def dimension(self) -> int:
        """Number of features."""

    def features(self, observation: FloatArray) -> Float64:
        """Shape [dimension]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How an observation becomes the features of a linear model, a constant feature last.

    Attributes:
        mean: Shape [features].
        std: Shape [features], above zero.
    """

    mean: FloatArray
    std: FloatArray

    @property
    def dimension(self) -> int:
        """Number of features."""
        return len(self.mean) + 1

    def features(self, observation: FloatArray) -> Float64:
        """Shape [dimension]."""
        return np.append((observation - self.mean) / self.std, 1.0).astype(np.float64)


class RidgeBank:
    """Ridge regressions that share their inputs, updated one sample at a time (Sherman and Morrison).

    Args:
        count: Number of regressions.
        dimension: Length of an input.
        ridge: Prior precision.
        forget: Share of the past that an update keeps.
    """

    def __init__(self, count: int, dimension: int, *, ridge: float, forget: float = 1.0) -> None:
        self.inverse: Float64 = np.stack([np.eye(dimension) / ridge] * count)
        self.sums: Float64 = np.zeros((count, dimension))
        self.weights: Float64 = np.zeros((count, dimension))
        self._forget = forget

    def get_arrays(self) -> dict[str, NDArray[Any]]:
        """Copies out what was learned."""
        return {"inverse": self.inverse.copy(), "sums": self.sums.copy(), "weights": self.weights.copy()}

    def set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Puts it back."""
        self.inverse, self.sums, self.weights = (np.array(arrays[name]) for name in ("inverse", "sums", "weights"))

    def predict(self, x: Float64) -> tuple[Float64, Float64]:
        """Means and standard deviations (for unit noise) of every regression at an input."""
        variance = np.maximum((self.inverse @ x) @ x, 0.0)
        return self.weights @ x, np.sqrt(variance)

    def update(self, rows: NDArray[np.int64], x: Float64, y: Float64) -> None:
        """Adds one sample to some regressions.

        Args:
            rows: Distinct regressions.
            x: Their common input.
            y: One target each.
        """
        inverse = self.inverse[rows]
        if self._forget < 1.0:
            largest = np.einsum("kii->ki", inverse).max(axis=1)
            share = np.where(largest / self._forget <= MAX_VARIANCE, self._forget, 1.0)
            inverse = inverse / share[:, None, None]
            self.sums[rows] *= share[:, None]
        along = inverse @ x
        # The product first: symmetric to the last bit. What rounding adds to one side, forgetting would blow up.
        inverse = inverse - along[:, :, None] * along[:, None, :] / (1.0 + along @ x)[:, None, None]
        self.inverse[rows] = inverse
        self.sums[rows] += y[:, None] * x
        self.weights[rows] = np.einsum("kij,kj->ki", inverse, self.sums[rows])


class _Linear(Bandit):
    """A regression of the step's speed-up for each arm, compressions told apart by the observation alone."""

    def __init__(self, name: str, settings: LinearSettings, times: StepTimes, features: Features, seed: int) -> None:
        super().__init__(name, settings.arms, times, seed=seed)
        self.settings, self.features = settings, features
        self.bank = RidgeBank(len(self.arms), features.dimension, ridge=settings.ridge, forget=settings.forget)

    def get_arrays(self) -> dict[str, NDArray[Any]]:
        """Copies out what was learned."""
        return self.bank.get_arrays()

    def set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Puts it back."""
        self.bank.set_arrays(arrays)

    def update(self, compression: int, arm: int, observation: FloatArray, outcome: StepOutcome) -> None:
        """Learns from the arm played, and from those whose outcome it revealed."""
        rows = np.array(revealed(self.arms, arm, outcome, self.settings.side_information))
        played = self.arms[rows]
        accepted = np.minimum(played, outcome.num_accepted)
        seconds = self.times.step_s(observation[np.newaxis])[0, played] - self.times.controller_s
        rewards = (accepted + 1) * self.times.verify_s[compression, 0] / seconds
        rewards[rows == arm] = self.speedup(compression, outcome)
        self.bank.update(rows, self.features.features(observation), rewards)


def revealed(arms: NDArray[np.int64], arm: int, outcome: StepOutcome, side_information: str) -> list[int]:
    """Arms whose outcome a step tells.

    A step of gamma tokens tells what every smaller gamma would have come to. A rejection tells it of every larger one
    as well, but only a rejection does: learning larger arms from those steps alone makes them look bad.

    Args:
        arms: Speculation lengths, ascending.
        arm: Index of the one played.
        outcome: What came of it.
        side_information: "none", "smaller" or "naive".
    """
    if side_information == "none" or outcome.num_drafted < arms[arm]:
        return [arm]
    known = list(range(arm + 1))
    if side_information == "naive" and outcome.num_accepted < outcome.num_drafted:
        known = list(range(len(arms)))
    return known


class LinUcb(_Linear):
    """argmax mean + width * standard deviation.

    Source:
        Li et al. 2010, arXiv:1003.0146 (LinUCB with disjoint models).
    """

    def __init__(self, settings: LinearSettings, times: StepTimes, features: Features, seed: int) -> None:
        super().__init__("linucb", settings, times, features, seed)

    def choose(self, compression: int, observation: FloatArray) -> int:
        """Follows the bound."""
        del compression
        mean, spread = self.bank.predict(self.features.features(observation))
        return int((mean + self.settings.width * spread).argmax())


class LinThompson(_Linear):
    """Draws each arm's value from its posterior at this input and plays the greatest.

    Source:
        Agrawal and Goyal 2013, arXiv:1209.3352; drawn in the space of values, which has the same marginals.
    """

    def __init__(self, settings: LinearSettings, times: StepTimes, features: Features, seed: int) -> None:
        super().__init__("lints", settings, times, features, seed)

    def choose(self, compression: int, observation: FloatArray) -> int:
        """Draws."""
        del compression
        mean, spread = self.bank.predict(self.features.features(observation))
        return int((mean + self.settings.width * spread * self.rng.standard_normal(len(mean))).argmax())
