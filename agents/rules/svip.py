# SPDX-License-Identifier: Apache-2.0
"""SVIP: stop where the draft's entropy bounds the acceptance rate too low."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from speckv.agents.building import COUNT, FROM_ZERO, require_above_zero, require_ranges
from speckv.agents.rules.base import ENTROPY, SignalRule

GRID = {"threshold": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), "gamma_max": (2, 3, 4, 6, 8, 12, 16)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SvipSettings:
    """Hyper-parameters; `scale` is c, `threshold` is h."""

    gamma_max: int
    scale: float
    threshold: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        require_ranges(self, gamma_max=COUNT, threshold=FROM_ZERO)
        require_above_zero(self, "scale")


class Svip(SignalRule):
    """Stops behind a token drawn from a distribution of entropy H (nats) with sqrt(c H) > h.

    Source:
        Zhang et al. 2024, arXiv:2411.18462; constants from its released code.
    """

    kind = "svip"
    settings_class = SvipSettings
    signal = ENTROPY

    def __init__(self, settings: SvipSettings) -> None:
        super().__init__("svip", settings.gamma_max)
        self.settings = settings

    def passes(self, values: Any) -> Any:
        """Whether the newest token's entropy is low enough."""
        return np.sqrt(self.settings.scale * values) <= self.settings.threshold
