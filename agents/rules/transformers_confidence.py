# SPDX-License-Identifier: Apache-2.0
"""The default of transformers' assisted generation: draft on while the drafted token is likely enough."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speckv.agents.building import COUNT, SHARE, require_ranges
from speckv.agents.rules.base import SignalRule
from speckv.types import BoolArray, DecodedSteps

Float64 = NDArray[np.float64]

MISS_WEIGHT = 3.0
"""A token stopped at though it would have been accepted weighs three times one drafted on behind a wrong one."""
MIN_SAMPLES = 6

GRID = {"threshold": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), "gamma_max": (3, 5, 8, 16), "adaptive": (False,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersConfidenceSettings:
    """Hyper-parameters; `adaptive` refits the threshold after every step, as transformers does with scikit-learn."""

    gamma_max: int
    threshold: float
    adaptive: bool

    def __post_init__(self) -> None:
        """Checks ranges."""
        require_ranges(self, gamma_max=COUNT, threshold=SHARE)


class TransformersConfidence(SignalRule):
    """Stops behind a token of probability below a threshold; the token stays in the draft.

    The threshold minimises false positives plus three times false negatives over the request's tested tokens, as points
    of their ROC curve. The drafted token's probability is taken to be the draft's top-1, as in greedy decoding.

    Source:
        transformers 5, `ConfidenceCriteria` and `AssistedCandidateGenerator.update_candidate_strategy`.
    """

    kind = "transformers_confidence"
    settings_class = TransformersConfidenceSettings

    def __init__(self, settings: TransformersConfidenceSettings) -> None:
        super().__init__("transformers-confidence", settings.gamma_max)
        self.settings = settings
        self.reset()

    def start(self, num_requests: int) -> None:
        """Begins requests at the first threshold, with nothing tested."""
        self._threshold = np.full(num_requests, self.settings.threshold)
        self._tested: list[list[tuple[float, bool]]] = [[] for _ in range(num_requests)]

    def passes(self, values: Any) -> Any:
        """Whether the newest token is likely enough."""
        return values >= self._threshold

    def remember(self, step: DecodedSteps, where: BoolArray) -> None:
        """Adds the tested tokens and refits the thresholds."""
        if not self.settings.adaptive:
            return
        for row in np.flatnonzero(where & (step.num_drafted > 0)):
            accepted = int(step.num_accepted[row])
            tested = min(accepted + 1, int(step.num_drafted[row]))
            confidences = step.draft_signals[row, :tested, 1].tolist()
            self._tested[row] += [(c, depth < accepted) for depth, c in enumerate(confidences)]
            fitted = best_threshold(self._tested[row])
            if fitted is not None:
                self._threshold[row] = fitted


def best_threshold(tested: list[tuple[float, bool]]) -> float | None:
    """The point of the ROC curve with the least false positive rate plus three times false negative rate.

    None before there are six tested tokens, some accepted and some not.

    >>> best_threshold([(0.9, True), (0.8, True), (0.7, True), (0.6, False), (0.5, True), (0.2, False)])
    0.5
    >>> best_threshold([(0.9, True)] * 6) is None
    True
    """
    values = np.array([confidence for confidence, _ in tested])
    accepted = np.array([kept for _, kept in tested], np.bool_)
    if len(values) < MIN_SAMPLES or accepted.all() or not accepted.any():
        return None
    candidates = np.unique(values)[::-1]
    positive = values >= candidates[:, None]
    true_rate = (positive & accepted).sum(axis=1) / accepted.sum()
    false_rate = (positive & ~accepted).sum(axis=1) / (~accepted).sum()
    return float(candidates[int((false_rate + MISS_WEIGHT * (1 - true_rate)).argmin())])
