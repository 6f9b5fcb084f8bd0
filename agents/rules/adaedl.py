# SPDX-License-Identifier: Apache-2.0
"""AdaEDL: an entropy-based lower bound on acceptance against a threshold that follows the acceptance achieved."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from speckv.agents.building import COUNT, FROM_ZERO, SHARE, require_above_zero, require_ranges
from speckv.agents.rules.base import ENTROPY, SignalRule
from speckv.types import BoolArray, DecodedSteps

GRID = {"threshold": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), "gamma_max": (4, 8, 16)}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaEdlSettings:
    """Hyper-parameters; the paper's gamma (not a speculation length), lambda, alpha, beta1, beta2 and epsilon."""

    gamma_max: int
    scale: float
    threshold: float
    target: float
    rate_decay: float
    threshold_decay: float
    step: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        require_ranges(self, gamma_max=COUNT, threshold=SHARE, target=SHARE, rate_decay=SHARE)
        require_ranges(self, threshold_decay=SHARE, step=FROM_ZERO)
        require_above_zero(self, "scale")


class AdaEdl(SignalRule):
    """Stops where 1 - sqrt(0.2 H) < lambda; the first token is always drafted.

    After a step that accepted A of n drafted tokens, r <- 0.5 r + 0.5 A / n, and lambda <- 0.9 lambda + 0.1 lambda'
    with lambda' = lambda + 0.01 if r < 0.9, else lambda - 0.01 if the cap was not reached by accepted tokens alone,
    else lambda. The paper decides before the token whose distribution it reads; here that token stays.

    Source:
        Agrawal et al. 2024, arXiv:2410.18351, Algorithm 1.
    """

    kind = "adaedl"
    settings_class = AdaEdlSettings
    signal = ENTROPY

    def __init__(self, settings: AdaEdlSettings) -> None:
        super().__init__("adaedl", settings.gamma_max)
        self.settings = settings
        self.reset()

    def start(self, num_requests: int) -> None:
        """Begins requests at the first threshold."""
        self._threshold = np.full(num_requests, self.settings.threshold)
        self._rate = np.full(num_requests, self.settings.target)

    def passes(self, values: Any) -> Any:
        """Whether the bound on the newest token's acceptance is high enough."""
        return 1.0 - np.sqrt(self.settings.scale * values) >= self._threshold

    def remember(self, step: DecodedSteps, where: BoolArray) -> None:
        """Moves acceptance and threshold."""
        s, where = self.settings, where & (step.num_drafted > 0)
        accepted = step.num_accepted / np.maximum(step.num_drafted, 1)
        rate = s.rate_decay * self._rate + (1 - s.rate_decay) * accepted
        lower = np.where(step.num_accepted != self.gamma_max, self._threshold - s.step, self._threshold)
        moved = np.where(rate < s.target, self._threshold + s.step, lower)
        threshold = s.threshold_decay * self._threshold + (1 - s.threshold_decay) * moved
        self._rate = np.where(where, rate, self._rate)
        self._threshold = np.where(where, threshold, self._threshold)
