# SPDX-License-Identifier: Apache-2.0
"""GammaTune: a moving average of accepted lengths, with a jump after full acceptance; GammaTune+ also stops early."""

from dataclasses import dataclass

import numpy as np

from speckv.agents.building import COUNT, FROM_ZERO, SHARE, require_ranges
from speckv.agents.rules.base import CONFIDENCE, Rule
from speckv.types import GAMMA_MAX, BoolArray, DecodedSteps, FloatArray, IntArray

GRID = {"start": (1, 2, 4, 8), "eta": (0.1, 0.3), "delta": (1, 2), "threshold": (0.0, 0.4, 0.6, 0.8)}


@dataclass(frozen=True, slots=True, kw_only=True)
class GammaTuneSettings:
    """Hyper-parameters; a threshold above 0 makes it GammaTune+."""

    start: int
    eta: float
    delta: int
    threshold: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        require_ranges(self, start=COUNT, eta=SHARE, delta=FROM_ZERO, threshold=SHARE)


class GammaTune(Rule):
    """gamma = A + delta if all were accepted, else ceil(average) with average <- clip((1 - eta) average + eta A).

    The average is clipped to between half and one and a half times the first gamma.

    Source:
        Gautam et al. 2025, arXiv:2504.00030; eta, delta, bounds as in the comparison of Learning to Draft (ICLR 2026).
    """

    kind = "gammatune"
    settings_class = GammaTuneSettings

    def __init__(self, settings: GammaTuneSettings) -> None:
        super().__init__("gammatune")
        self.settings = settings
        self.reset()

    @classmethod
    def variant(cls, settings: GammaTuneSettings) -> type["GammaTune"]:
        """GammaTune, or GammaTune+ if there is a threshold."""
        return GammaTunePlus if settings.threshold > 0 else GammaTune

    def start(self, num_requests: int) -> None:
        """Begins requests at the first gamma."""
        self._average = np.full(num_requests, float(self.settings.start))
        self._gamma = np.full(num_requests, min(self.settings.start, GAMMA_MAX), np.int64)

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the present gamma of each request."""
        assert len(observations) == len(self._gamma)
        return self._gamma.copy()

    def remember(self, step: DecodedSteps, where: BoolArray) -> None:
        """Moves average and gamma."""
        s = self.settings
        success = step.num_accepted == self._gamma
        average = (1 - s.eta) * self._average + s.eta * step.num_accepted
        average = np.where(success, self._average, np.clip(average, 0.5 * s.start, 1.5 * s.start))
        gamma = np.where(success, step.num_accepted + s.delta, np.ceil(average)).astype(np.int64)
        self._average = np.where(where, average, self._average)
        self._gamma = np.where(where, np.minimum(gamma, GAMMA_MAX), self._gamma)


class GammaTunePlus(GammaTune):
    """GammaTune that also stops behind a token of top-1 probability below the threshold."""

    kind = GammaTune.kind

    def __init__(self, settings: GammaTuneSettings) -> None:
        super().__init__(settings)
        self.name = "gammatune+"

    def go_on(self, observation: FloatArray) -> bool:
        """Returns whether to draft another token in the only request."""
        return bool(self.go_on_batch(observation[np.newaxis])[0])

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """Goes on where the newest token is likely enough."""
        likely: BoolArray = observations[:, CONFIDENCE] >= self.settings.threshold
        return likely
