# SPDX-License-Identifier: Apache-2.0
"""SGLang's adaptive speculation: a few prepared lengths, moved between with hysteresis on averaged acceptance."""

from dataclasses import dataclass

import numpy as np

from speckv.agents.building import COUNT, SHARE, require_gammas, require_ranges
from speckv.agents.rules.base import Rule
from speckv.types import BoolArray, DecodedSteps, FloatArray, IntArray

GRID = {"candidates": ((1, 3, 5, 7), (0, 1, 2, 3), (1, 2, 3, 4), (2, 5, 8, 12)), "start": (0, 1, 2)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangEmaSettings:
    """Hyper-parameters: those of batch size 1.

    Attributes:
        start: Index of the first length.
        decay: Share of the past in the averaged accepted length.
        warmup: Steps before moves are considered; the first move is possible `interval` later.
    """

    candidates: tuple[int, ...]
    start: int
    decay: float
    warmup: int
    interval: int
    down: float
    up: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        require_gammas(self.candidates, "candidates")
        require_ranges(self, start=(0, len(self.candidates) - 1), interval=COUNT, decay=SHARE)


class SglangEma(Rule):
    """Every few steps: down while average <= shorter - 0.5 + down, up while average > present - 0.5 + up.

    The bar of a shorter length 0 is 0.5 + down; at 0 nothing is learned, and every few steps the next longer length is
    probed. The average starts at the first length minus 1. SGLang keeps one average for all requests, not one each.

    Source:
        SGLang 0.5.23, `srt/speculative/adaptive_spec_params.py`.
    """

    kind = "sglang_ema"
    settings_class = SglangEmaSettings

    def __init__(self, settings: SglangEmaSettings) -> None:
        super().__init__("sglang-ema")
        self.settings = settings
        self._candidates = np.array(settings.candidates, np.int64)
        self.reset()

    def start(self, num_requests: int) -> None:
        """Begins requests at the first length."""
        self._index = np.full(num_requests, self.settings.start, np.int64)
        self._average = np.full(num_requests, max(float(self._candidates[self.settings.start]) - 1.0, 0.0))
        self._steps = np.zeros(num_requests, np.int64)

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the present length of each request."""
        assert len(observations) == len(self._index)
        chosen: IntArray = self._candidates[self._index]
        return chosen

    def remember(self, step: DecodedSteps, where: BoolArray) -> None:
        """Moves the average, and at every few steps the length."""
        s = self.settings
        speculates = self._candidates[self._index] > 0
        average = s.decay * self._average + (1 - s.decay) * step.num_accepted
        self._average = np.where(where & speculates, average, self._average)
        self._steps = self._steps + where
        due = where & (self._steps > s.warmup) & ((self._steps - s.warmup) % s.interval == 0)
        last = len(self._candidates) - 1
        self._index = self._index + (due & ~speculates & (self._index < last))
        due &= speculates
        for _ in range(last):
            shorter = self._candidates[np.maximum(self._index - 1, 0)]
            bar = np.where(shorter == 0, 0.5, shorter - 0.5) + s.down
            self._index = self._index - (due & (self._index > 0) & (self._average <= bar))
        for _ in range(last):
            present = self._candidates[self._index]
            rises = due & (present > 0) & (self._index < last) & (self._average > present - 0.5 + s.up)
            self._index = self._index + rises
