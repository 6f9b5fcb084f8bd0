# SPDX-License-Identifier: Apache-2.0
"""Step times that a controller stores: a cost table at its reference context."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from speckv.cost.live import LiveTimes, TimedStep, TimesPrior
from speckv.observation import BITS_SCALE, LAG_HORIZON, SCHEMA
from speckv.types import BITS_PER_WEIGHT, GAMMA_MAX, FloatArray, IntArray

if TYPE_CHECKING:
    from speckv.cost.table import CostTable

Float64 = NDArray[np.float64]

NEVER = -1
"""The floor of a compression at which nothing is ever drafted."""
_BITS, _LAG = SCHEMA.index("bits_per_weight"), SCHEMA.index("draft_lag")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Seconds of decode steps at the reference context, by compression.

    Attributes:
        draft_s: Shape [compressions]; a draft pass of one token.
        lag_s: Shape [compressions]; added to a step's first draft pass for each token of the draft's lag.
        verify_s: Shape [compressions, gamma_max + 1]; verifying that many drafted tokens.
    """

    compressions: tuple[str, ...]
    draft_s: Float64
    lag_s: Float64
    verify_s: Float64
    controller_s: float
    _unlagged_s: Float64 = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Computes the steps without a lag once: shape [compressions, gamma_max + 1]."""
        drafted = np.arange(self.verify_s.shape[1])
        unlagged = self.verify_s + drafted * self.draft_s[:, None] + self.controller_s
        unlagged.setflags(write=False)
        object.__setattr__(self, "_unlagged_s", unlagged)

    @staticmethod
    def of(table: "CostTable", compressions: Sequence[str] | None = None, *, gamma_max: int = GAMMA_MAX) -> "StepTimes":
        """Reads a table as it is, also where a wider verify pass is faster; all compressions by default."""
        names = tuple(compressions if compressions is not None else table.compressions)
        entries = [table.entry(name) for name in names]
        widths = np.arange(1, gamma_max + 2)
        first, second = (np.array([float(e.draft_pass_s(w, e.reference_context)) for e in entries]) for w in (1, 2))
        verify = np.stack([e.verify_pass_s(widths, e.reference_context) for e in entries])
        return StepTimes(
            compressions=names,
            draft_s=first,
            lag_s=np.maximum(second - first, 0.0),
            verify_s=verify,
            controller_s=table.controller_s,
        )

    def which(self, observations: FloatArray) -> IntArray:
        """Shape [N]; row of each observation's compression, by its bits per weight."""
        return self._nearest(observations[:, _BITS])

    def rows_of(self, compressions: Sequence[str]) -> IntArray:
        """Shape [compressions]; the row of each, or the nearest one in bits per weight."""
        return self._nearest(_widths(compressions))

    def _nearest(self, bits: FloatArray) -> IntArray:
        rows: IntArray = np.abs(bits[:, None] - _widths(self.compressions)).argmin(axis=1)
        return rows

    def step_s(self, observations: FloatArray) -> Float64:
        """Shape [N, gamma_max + 1]; seconds of a step that drafts each number of tokens, one decision included."""
        which = self.which(observations)
        seconds = self._unlagged_s[which]
        lag = observations[:, _LAG].astype(np.float64) * LAG_HORIZON
        seconds[:, 1:] += (lag * self.lag_s[which])[:, None]
        return seconds

    def one_step_s(self, which: int, observation: FloatArray) -> Float64:
        """Shape [gamma_max + 1]; the same for one observation of shape [features], of row `which`'s compression."""
        seconds: Float64 = self._unlagged_s[which]
        lag = float(observation[_LAG]) * LAG_HORIZON
        if not lag:
            return seconds
        seconds = seconds.copy()
        seconds[1:] += lag * self.lag_s[which]
        return seconds


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LiveStepTimes(StepTimes):
    """Step times that are learned while decoding: the arrays change with every observed step.

    Whole steps stand in `verify_s`, decisions included; `draft_s`, `lag_s` and `controller_s` are 0.

    Attributes:
        live: What is learned for each compression.
    """

    live: tuple[LiveTimes, ...]

    def __post_init__(self) -> None:
        """Makes steps and verification one array."""
        object.__setattr__(self, "_unlagged_s", self.verify_s)

    @staticmethod
    def start(compressions: Sequence[str], priors: Sequence[TimesPrior]) -> "LiveStepTimes":
        """Nothing observed yet; one prior for each compression."""
        live = tuple(LiveTimes(prior) for prior in priors)
        zeros = np.zeros(len(live))
        return LiveStepTimes(
            compressions=tuple(compressions),
            draft_s=zeros,
            lag_s=zeros,
            verify_s=np.stack([times.step_s for times in live]),
            controller_s=0.0,
            live=live,
        )

    def observe(self, row: int, step: TimedStep) -> bool:
        """Learns from a step at one compression; returns whether the times changed."""
        live = self.live[row]
        before = live.step_s
        live.observe(step)
        if live.step_s is before:
            return False
        self.verify_s[row] = live.step_s
        return True


def _widths(compressions: Sequence[str]) -> FloatArray:
    return np.array([BITS_PER_WEIGHT[name] / BITS_SCALE for name in compressions], np.float32)
