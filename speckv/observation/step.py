# SPDX-License-Identifier: Apache-2.0
"""What one decode step did, as far as observations need it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speckv.types import NUM_SIGNALS, FloatArray, IntArray, StepOutcome

TESTED_SUMMARY = (
    "entropy_mean",
    "entropy_max",
    "confidence_mean",
    "confidence_min",
    "margin_mean",
    "confidence_last",
)
"""Columns of a summary of the tested tokens' draft signals."""

NEUTRAL_SUMMARY = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 1.0], np.float32)
NEUTRAL_SUMMARY.setflags(write=False)
"""Its value while nothing has been drafted: a draft that is sure of itself."""


def running_summary(signals: NDArray[np.floating]) -> FloatArray:
    """Summaries of every prefix of a draft's signals.

    Args:
        signals: Shape [N, depth, 3]: entropy, confidence, margin of each drafted token.

    Returns:
        Shape [N, depth + 1, 6]: row k sums up the first k tokens, columns as in `TESTED_SUMMARY`; row 0 is neutral.

    >>> signals = np.array([[[1.0, 0.8, 0.5], [2.0, 0.25, 0.0]]])
    >>> running_summary(signals)[0, 2].tolist()
    [1.5, 2.0, 0.5249999761581421, 0.25, 0.25, 0.25]
    """
    number, depth, _ = signals.shape
    out = np.empty((number, depth + 1, len(TESTED_SUMMARY)), np.float32)
    out[:, 0] = NEUTRAL_SUMMARY
    # One addition after the other, so that a mean does not depend on how many tokens follow.
    means = np.cumsum(signals, axis=1, dtype=np.float64) / np.arange(1, depth + 1)[:, None]
    out[:, 1:, [0, 2, 4]] = means
    out[:, 1:, 1] = np.maximum.accumulate(signals[..., 0], axis=1)
    out[:, 1:, 3] = np.minimum.accumulate(signals[..., 1], axis=1)
    out[:, 1:, 5] = signals[..., 1]
    return out


def summarise_tested(signals: NDArray[np.floating], num_tested: ArrayLike) -> FloatArray:
    """Sums up the draft's signals at the tested tokens of one step.

    Args:
        signals: Shape [N, depth, 3]: entropy, confidence, margin of each drafted token.
        num_tested: Shape [N]; how many of them the target judged, 0 to depth.

    Returns:
        Shape [N, 6], columns as in `TESTED_SUMMARY`; neutral where nothing was tested.

    >>> summarise_tested(np.array([[[1.0, 0.8, 0.5], [2.0, 0.25, 0.0]]]), [1])[0, :2].tolist()
    [1.0, 1.0]
    """
    summary: FloatArray = running_summary(signals)[np.arange(len(signals)), np.asarray(num_tested, np.int64)]
    return summary


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """What one decode step of each request did, as far as observations need it.

    Attributes:
        num_drafted: Shape [N]; tokens really drafted.
        num_accepted: Shape [N]; drafted tokens kept, bonus excluded.
        num_emitted: Shape [N]; tokens added to the output.
        tested: Shape [N, 6]; `summarise_tested` of the step; ignored where nothing was drafted.
        target: Shape [N, 2]; the target's entropy and confidence at the newest emitted token.
    """

    num_drafted: IntArray
    num_accepted: IntArray
    num_emitted: IntArray
    tested: FloatArray
    target: FloatArray

    @property
    def num_tested(self) -> IntArray:
        """Shape [N]; the accepted tokens and the first rejected one."""
        return np.minimum(self.num_accepted + 1, self.num_drafted)

    @staticmethod
    def from_outcome(outcome: StepOutcome) -> "StepBatch":
        """Wraps the step of one live request."""
        signals = np.asarray(outcome.draft_signals, np.float32).reshape(1, -1, NUM_SIGNALS)
        return StepBatch(
            num_drafted=np.array([outcome.num_drafted]),
            num_accepted=np.array([outcome.num_accepted]),
            num_emitted=np.array([outcome.num_emitted]),
            tested=summarise_tested(signals, [outcome.num_tested]),
            target=np.array([[outcome.target_entropy, outcome.target_confidence]], np.float32),
        )
