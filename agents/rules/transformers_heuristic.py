# SPDX-License-Identifier: Apache-2.0
"""The first schedule of transformers' assisted generation: two more after success, one fewer after failure."""

from dataclasses import dataclass

import numpy as np

from speckv.agents.building import COUNT, FROM_ZERO, require_ranges
from speckv.agents.rules.base import Rule
from speckv.types import GAMMA_MAX, BoolArray, DecodedSteps, FloatArray, IntArray

GRID = {"start": (1, 2, 3, 5, 8), "up": (1, 2, 3), "down": (1, 2)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersHeuristicSettings:
    """Hyper-parameters."""

    start: int
    up: int
    down: int

    def __post_init__(self) -> None:
        """Checks ranges."""
        require_ranges(self, start=COUNT, up=FROM_ZERO, down=FROM_ZERO)


class TransformersHeuristic(Rule):
    """gamma <- gamma + 2 if all gamma tokens were accepted, else max(1, gamma - 1); anew for each request.

    Source:
        transformers 5, `num_assistant_tokens_schedule="heuristic_transient"`, `generation/candidate_generator.py`.
    """

    kind = "transformers_heuristic"
    settings_class = TransformersHeuristicSettings

    def __init__(self, settings: TransformersHeuristicSettings) -> None:
        super().__init__("transformers-heuristic")
        self.settings = settings
        self.reset()

    def start(self, num_requests: int) -> None:
        """Begins requests at the first gamma."""
        self._gamma = np.full(num_requests, min(self.settings.start, GAMMA_MAX), np.int64)

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the present gamma of each request."""
        assert len(observations) == len(self._gamma)
        return self._gamma.copy()

    def remember(self, step: DecodedSteps, where: BoolArray) -> None:
        """Moves gamma."""
        success = step.num_accepted == self._gamma
        moved = np.where(success, self._gamma + self.settings.up, np.maximum(1, self._gamma - self.settings.down))
        self._gamma = np.where(where, np.minimum(moved, GAMMA_MAX), self._gamma)
