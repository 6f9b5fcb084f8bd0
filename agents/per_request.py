# SPDX-License-Identifier: Apache-2.0
"""One gamma a request, chosen at its start; the row `request-oracle` of a table is the bound of a perfect choice."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speckv.agents.building import require_above_zero
from speckv.agents.rules.base import Rule
from speckv.cost.times import StepTimes
from speckv.runtime.state import Arrays, ControllerState
from speckv.types import BatchMemory, BoolArray, Controller, DecodedSteps, FloatArray, IntArray

Float64 = NDArray[np.float64]
_UNDECIDED = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class PerRequestSettings:
    """Hyper-parameters; `ridge` is the prior precision of all weights but the constants', in requests."""

    ridge: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        require_above_zero(self, "ridge")


class PerRequestGamma(Rule):
    """Decides once a request, by a controller that decides once a step; stored only with a `RequestTimes`."""

    kind = "per_request"
    settings_class = PerRequestSettings

    def __init__(self, controller: Controller, *, name: str | None = None) -> None:
        super().__init__(name or f"{controller.name}, once a request")
        self.controller = controller
        self.charges_decision = False  # one decision a request is lost in its time
        self._kept: IntArray = np.full(1, _UNDECIDED, np.int64)

    def state(self) -> ControllerState:
        """Returns the regressions of a `RequestTimes`."""
        assert isinstance(self.controller, RequestTimes)
        return self.controller.state()

    @classmethod
    def from_state(cls, state: ControllerState) -> "PerRequestGamma":
        """Makes the stored controller."""
        return cls(RequestTimes.from_state(state), name="per-request")

    @property
    def times(self) -> StepTimes | None:
        """Times of the machine that its controller decides for, if it has any."""
        return getattr(self.controller, "times", None)

    def start(self, num_requests: int) -> None:
        """Begins that many requests, each undecided."""
        self._kept = np.full(num_requests, _UNDECIDED, np.int64)
        self.controller.reset()
        if isinstance(self.controller, BatchMemory):
            self.controller.start(num_requests)

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns what was decided at the start."""
        if (self._kept == _UNDECIDED).any():
            self._kept = np.asarray(self.controller.act_batch(observations), np.int64).copy()
        return self._kept

    def remember(self, step: DecodedSteps, where: BoolArray) -> None:
        """Ignored: the choice is made."""


class RequestTimes(Rule):
    """The gamma of least predicted time, linear in the observation.

    Args:
        weights: Shape [compressions, gamma_max + 1, features + 1]; the last column is a constant.
    """

    def __init__(self, times: StepTimes, mean: FloatArray, std: FloatArray, weights: Float64) -> None:
        super().__init__("request-times")
        self.times, self.mean, self.std, self.weights = times, mean, std, weights

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the gamma that is predicted to be fastest."""
        inputs = linear_inputs(observations, self.mean, self.std)
        chosen: IntArray = np.einsum("ngf,nf->ng", self.weights[self.times.which(observations)], inputs).argmin(axis=1)
        return chosen

    def state(self) -> ControllerState:
        """Returns what was learned."""
        arrays: Arrays = {"mean": self.mean, "std": self.std, "weights": self.weights}
        return ControllerState.of(times=self.times, arrays=arrays)

    @classmethod
    def from_state(cls, state: ControllerState) -> "RequestTimes":
        """Makes the stored regressions."""
        state.require_same_features()
        return cls(state.times(), *(state.array(name) for name in ("mean", "std", "weights")))


def linear_inputs(observations: FloatArray, mean: FloatArray, std: FloatArray) -> Float64:
    """Shape [requests, features + 1]; scaled features, a constant last."""
    scaled = (observations.astype(np.float64) - mean) / std
    return np.concatenate([scaled, np.ones((len(scaled), 1))], axis=1)
