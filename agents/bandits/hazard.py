# SPDX-License-Identifier: Apache-2.0
"""Hazard Thompson sampling: learns the chance of acceptance at each depth, not the value of each gamma.

A step's outcome is survival data, censored at gamma. Regressions of "was the token at this depth accepted, given that
it was tested?" are unbiased under that censoring and share what they learn over all gammas.
"""

from dataclasses import dataclass

import numpy as np

from speckv.agents.bandits.base import Features
from speckv.agents.bandits.linear import RidgeBandit
from speckv.agents.building import FROM_ZERO, SHARE, require_above_zero, require_ranges
from speckv.cost.times import StepTimes
from speckv.types import GAMMA_MAX, FloatArray, StepOutcome

LEAST, MOST = 0.02, 0.98
PROBE_GAMMA = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class HazardSettings:
    """Hyper-parameters.

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
        require_ranges(self, gamma_max=(1, GAMMA_MAX), width=FROM_ZERO, forget=SHARE, probe=SHARE)
        require_above_zero(self, "ridge", "forget")


class HazardThompson(RidgeBandit):
    """Draws an acceptance probability a_j for each depth and plays argmax (1 + a_1 + a_1 a_2 + ...) / seconds(gamma).

    Source:
        Ours: discrete-time survival with linear hazards; posterior draws as in linear Thompson sampling.
    """

    kind = "hazard_thompson"
    settings_class = HazardSettings

    def __init__(self, settings: HazardSettings, times: StepTimes, features: Features, seed: int) -> None:
        arms = tuple(range(settings.gamma_max + 1))
        super().__init__(settings, arms, times, features, seed, count=settings.gamma_max)

    def choose(self, compression: int, observation: FloatArray) -> int:
        """Draws hazards and weighs tokens against time; sometimes probes where plain decoding seems best."""
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

    def update(self, compression: int, arm: int, observation: FloatArray, outcome: StepOutcome) -> None:
        """Learns from every tested token."""
        del compression, arm
        depths = np.arange(outcome.num_tested)
        if len(depths):
            accepted = (depths < outcome.num_accepted).astype(np.float64)
            self.bank.update(depths, self.features.features(observation), accepted - 0.5)


class DiscountedHazardThompson(HazardThompson):
    """`HazardThompson` whose regressions discount what they learned before at every update.

    Source:
        Discounting as in Russac, Vernade and Cappe 2019, arXiv:1909.09146 (D-LinUCB), on the hazards; `RidgeBank` keeps
        the variance of directions that are not visited within bounds.
    """

    kind = "hazard_thompson_discounted"
