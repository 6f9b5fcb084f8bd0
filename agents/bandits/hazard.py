# SPDX-License-Identifier: Apache-2.0
"""Hazard Thompson sampling: learns the chance of acceptance at each depth, not the value of each gamma.

A step that drafts gamma tokens shows how many were accepted up to the first rejection and nothing behind it: survival
data, censored at gamma. Regressions of "was the token at this depth accepted, given that it was tested?" are unbiased
under that censoring, share what they learn over all gammas, and leave time to the cost table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.bandits.base import Bandit, Features
from agents.bandits.linear import RidgeBank, Scaling
from speckv.cost.times import StepTimes
from speckv.errors import ConfigError
from speckv.types import FloatArray, StepOutcome

LEAST, MOST = 0.02, 0.98
PROBE_GAMMA = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class HazardSettings:
    """Of hazard Thompson sampling.

    Attributes:
        forget: Share of the past that each update keeps.
        probe: Chance of drafting two tokens where none looks best: plain steps reveal nothing.
    """

    gamma_max: int
    width: float
    ridge: float
    forget: float
    probe: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 1 <= self.gamma_max <= 16 or self.width < 0 or self.ridge <= 0:
            raise ConfigError(
                f"Expected agent.gamma_max from 1 to 16, agent.width from 0 up and agent.ridge above 0, got {self}."
            )
        if not 0 < self.forget <= 1 or not 0 <= self.probe <= 1:
            raise ConfigError(f"Expected agent.forget in (0, 1] and agent.probe in [0, 1], got {self}.")


class HazardThompson(Bandit):
    """Draws an acceptance probability a_j for each depth and plays argmax (1 + a_1 + a_1 a_2 + ...) / seconds(gamma).

    Source:
        Ours: discrete-time survival with linear hazards; posterior draws as in linear Thompson sampling.
    """

    kind = "hazard_thompson"
    settings_class = HazardSettings
    reads: type[Features] | None = Scaling

    def __init__(self, settings: HazardSettings, times: StepTimes, features: Features, seed: int) -> None:
        super().__init__("hazard-thompson", tuple(range(settings.gamma_max + 1)), times, seed=seed)
        self.settings, self.features = settings, features
        self.bank = RidgeBank(settings.gamma_max, features.dimension, ridge=settings.ridge, forget=settings.forget)

    def choose(self, compression: int, observation: FloatArray) -> int:
        """Draws hazards and weighs tokens against time; now and then it looks where plain decoding seems best."""
        del compression
        mean, spread = self.bank.predict(self.features.features(observation))
        drawn = 0.5 + mean + self.settings.width * spread * self.rng.standard_normal(len(mean))
        survival = np.cumprod(np.clip(drawn, LEAST, MOST))
        tokens = np.concatenate([[1.0], 1.0 + np.cumsum(survival)])
        seconds = self.times.step_s(observation[np.newaxis])[0, : len(tokens)]
        gamma = int((tokens / seconds).argmax())
        if gamma == 0 and self.rng.random() < self.settings.probe:
            return min(PROBE_GAMMA, int(self.settings.gamma_max))
        return gamma

    def get_arrays(self) -> dict[str, NDArray[Any]]:
        """Copies out what was learned."""
        return self.bank.get_arrays()

    def set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Puts it back."""
        self.bank.set_arrays(arrays)

    def update(self, compression: int, arm: int, observation: FloatArray, outcome: StepOutcome) -> None:
        """Learns from every tested token."""
        del compression, arm
        depths = np.arange(outcome.num_tested)
        if len(depths):
            accepted = (depths < outcome.num_accepted).astype(np.float64)
            self.bank.update(depths, self.features.features(observation), accepted - 0.5)


class DiscountedHazardThompson(HazardThompson):
    """The same, forgetting: every update of a regression first weakens what it learned before.

    Source:
        Discounting as in Russac, Vernade and Cappe 2019, arXiv:1909.09146 (D-LinUCB), on the hazards; `RidgeBank` keeps
        the variance of directions that are not visited within bounds.
    """

    kind = "hazard_thompson_discounted"

    def __init__(self, settings: HazardSettings, times: StepTimes, features: Features, seed: int) -> None:
        super().__init__(settings, times, features, seed)
        self.name = "hazard-thompson-discounted"
