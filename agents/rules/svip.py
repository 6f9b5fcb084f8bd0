# SPDX-License-Identifier: Apache-2.0
"""SVIP: stop where the draft's entropy bounds the acceptance rate too low."""

from dataclasses import dataclass

import numpy as np

from agents.rules.base import ENTROPY, StoppingRule
from speckv.errors import ConfigError
from speckv.types import BoolArray, FloatArray

GRID = {"threshold": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), "gamma_max": (2, 3, 4, 6, 8, 12, 16)}
"""Values that tuning tries, every combination."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SvipSettings:
    """Hyper-parameters.

    Attributes:
        scale: c in sqrt(c * entropy).
        threshold: h: the draft ends behind a token with sqrt(c * entropy) above it.
    """

    gamma_max: int
    scale: float
    threshold: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.gamma_max < 1 or self.scale <= 0 or self.threshold < 0:
            raise ConfigError(
                f"Expected agent.gamma_max of at least 1, agent.scale above 0, agent.threshold from 0 up, got {self}."
            )


class Svip(StoppingRule):
    """Stops behind a token drawn from a distribution of entropy H (nats) with sqrt(c H) > h.

    Source:
        Zhang et al. 2024, arXiv:2411.18462; constants from its released code.
    """

    kind = "svip"
    settings_class = SvipSettings

    def __init__(self, settings: SvipSettings) -> None:
        super().__init__("svip", settings.gamma_max)
        self.settings = settings

    def go_on(self, observation: FloatArray) -> bool:
        """Returns the same for the only request, without arrays."""
        return bool(np.sqrt(self.settings.scale * observation[ENTROPY]) <= self.settings.threshold)

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """Goes on where the newest token's entropy is low enough."""
        sure: BoolArray = np.sqrt(self.settings.scale * observations[:, ENTROPY]) <= self.settings.threshold
        return sure
