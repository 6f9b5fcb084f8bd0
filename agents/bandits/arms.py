# SPDX-License-Identifier: Apache-2.0
"""Bandits without context: one value for each gamma and compression."""

import math
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from speckv.agents.bandits.base import Bandit, Float64
from speckv.agents.building import FROM_ZERO, require_ranges
from speckv.cost.times import StepTimes
from speckv.types import FloatArray, StepOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmsSettings:
    """Hyper-parameters; `arms` are the speculation lengths to choose from."""

    arms: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UcbSettings:
    """Hyper-parameters; `width` multiplies the bonus, and 1 is the theory's."""

    arms: tuple[int, ...]
    width: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        require_ranges(self, width=FROM_ZERO)


class _Means(Bandit):
    learned = ("counts", "means", "squares")

    def __init__(self, settings: ArmsSettings | UcbSettings, times: StepTimes, seed: int) -> None:
        super().__init__(self.kind, settings.arms, times, seed=seed)
        self.settings = settings
        shape = (len(times.compressions), len(self.arms))
        self.counts, self.means = np.zeros(shape), np.zeros(shape)
        self.squares = np.zeros(shape)

    def update(self, compression: int, arm: int, observation: FloatArray, outcome: StepOutcome) -> None:
        del observation
        reward = self.speedup(compression, outcome)
        self.counts[compression, arm] += 1
        self.means[compression, arm] += (reward - self.means[compression, arm]) / self.counts[compression, arm]
        self.squares[compression, arm] += reward**2

    def choose(self, compression: int, observation: FloatArray) -> int:
        del observation
        untried = np.flatnonzero(self.counts[compression] == 0)
        return int(untried[0]) if len(untried) else int(self.values(compression).argmax())

    @abstractmethod
    def values(self, compression: int) -> Float64:
        """Shape [arms]; the value of each arm, all of which have been played."""


class Ucb1(_Means):
    """argmax mean + R sqrt(2 ln t / n), with R the greatest possible reward.

    Source:
        Auer, Cesa-Bianchi and Fischer 2002, "Finite-time analysis of the multiarmed bandit problem".
    """

    kind = "ucb1"
    settings_class = UcbSettings

    def values(self, compression: int) -> Float64:
        """Upper confidence bounds."""
        counts = self.counts[compression]
        bonus = self.largest(compression) * np.sqrt(2 * math.log(counts.sum()) / counts)
        bounds: Float64 = self.means[compression] + self.settings.width * bonus
        return bounds


class UcbSpec(_Means):
    """argmax mean + (L/2) sqrt((1 + n) / n^2 (1 + 2 ln(K t^2 sqrt(1 + n) / delta))).

    L is the range of rewards; the paper's rewards are tokens of a step, here they are speed-ups of a step.

    Source:
        Hou et al. 2025, arXiv:2505.15141 (BanditSpec), algorithm UCBSpec, delta = 1. Its released code adds the same
        bonus to every arm, which is following the best mean.
    """

    kind = "ucbspec"
    settings_class = UcbSettings

    def values(self, compression: int) -> Float64:
        """Upper confidence bounds."""
        n = self.counts[compression]
        inside = (1 + n) / n**2 * (1 + 2 * np.log(len(n) * n.sum() ** 2 * np.sqrt(1 + n)))
        bonus = self.largest(compression) / 2 * np.sqrt(inside)
        bounds: Float64 = self.means[compression] + self.settings.width * bonus
        return bounds


class GaussianThompson(_Means):
    """Draws each arm's mean from a normal posterior with the empirical variance, and plays the greatest."""

    kind = "thompson"
    settings_class = ArmsSettings

    def values(self, compression: int) -> Float64:
        """Draws of the posterior."""
        n, mean = self.counts[compression], self.means[compression]
        # One pseudo-observation of variance 1 keeps the first draws wide.
        variance = np.maximum(self.squares[compression] / n - mean**2, 0.0)
        spread = np.sqrt((variance * n + 1.0) / (n + 1.0) / n)
        draws: Float64 = mean + spread * self.rng.standard_normal(len(n))
        return draws


class Exp3Spec(Bandit):
    """Plays with probability proportional to exp(-eta_t * estimated loss), eta_t = sqrt(ln K / (t K)).

    Losses are (R - reward) / R over the probability that the arm was played with; R is the greatest possible reward.

    Source:
        Hou et al. 2025, arXiv:2505.15141 (BanditSpec), algorithm EXP3Spec.
    """

    kind = "exp3spec"
    settings_class = ArmsSettings
    learned = ("losses", "played")
    of_request = ("_last", "_probability")

    def __init__(self, settings: ArmsSettings, times: StepTimes, seed: int) -> None:
        super().__init__("exp3spec", settings.arms, times, seed=seed)
        self.settings = settings
        self.losses = np.zeros((len(times.compressions), len(self.arms)))
        self.played = np.zeros(len(times.compressions))
        self._probability = 1.0

    def choose(self, compression: int, observation: FloatArray) -> int:
        """Draws an arm."""
        del observation
        count = len(self.arms)
        eta = math.sqrt(math.log(count) / ((self.played[compression] + 1) * count))
        weights = np.exp(-eta * (self.losses[compression] - self.losses[compression].min()))
        probabilities = weights / weights.sum()
        arm = int(self.rng.choice(count, p=probabilities))
        self._probability = float(probabilities[arm])
        return arm

    def update(self, compression: int, arm: int, observation: FloatArray, outcome: StepOutcome) -> None:
        """Adds the estimated loss."""
        del observation
        largest = self.largest(compression)
        # A short context can be faster than the reference context that `largest` is computed at.
        loss = max(0.0, (largest - self.speedup(compression, outcome)) / largest)
        self.losses[compression, arm] += loss / self._probability
        self.played[compression] += 1
