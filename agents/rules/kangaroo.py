# SPDX-License-Identifier: Apache-2.0
"""Kangaroo's early stop of drafting: a least probability of the previous drafted token."""

from dataclasses import dataclass
from typing import Any

from speckv.agents.building import COUNT, SHARE, require_ranges
from speckv.agents.rules.base import SignalRule

GRID = {"eta": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), "gamma_max": (2, 3, 4, 6, 8, 12, 16)}


@dataclass(frozen=True, slots=True, kw_only=True)
class KangarooSettings:
    """Hyper-parameters."""

    gamma_max: int
    eta: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        require_ranges(self, gamma_max=COUNT, eta=SHARE)


class Kangaroo(SignalRule):
    """Drafts another token while the newest one's top-1 probability is at least eta.

    Source:
        Liu et al. 2024, arXiv:2404.18911, section 3.2; defaults from its released code.
    """

    kind = "kangaroo"
    settings_class = KangarooSettings

    def __init__(self, settings: KangarooSettings) -> None:
        super().__init__("kangaroo", settings.gamma_max)
        self.settings = settings

    def passes(self, values: Any) -> Any:
        """Whether the newest token is likely enough."""
        return values >= self.settings.eta
