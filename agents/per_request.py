# SPDX-License-Identifier: Apache-2.0
"""One gamma a request, chosen from what is known at its start: the coarsest of the three granularities.

At the start little is known: the target's certainty about the first token, the compression, and what a step costs. The
row `request-oracle` in every table says what a perfect choice of one gamma a request would be worth.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.rules.base import Rule
from speckv.cost import CostTable
from speckv.cost.times import StepTimes
from speckv.errors import ConfigError
from speckv.evaluation.compare import compile_pair
from speckv.replay import ReplayBatch, replay_fixed
from speckv.traces import TraceSet
from speckv.types import BatchMemory, BoolArray, Controller, DecodedSteps, FloatArray, IntArray

Float64 = NDArray[np.float64]
_MIN_STD = 1e-3
_UNDECIDED = -1


class PerRequest(Rule):
    """Lets a controller decide once, before a request's first step, and keeps to that.

    Args:
        controller: One that decides once a step.
        name: Shown in tables.
    """

    def __init__(self, controller: Controller, *, name: str | None = None) -> None:
        super().__init__(name or f"{controller.name}, once a request")
        self.controller = controller
        self.charges_decision = False  # one decision a request is lost in its time
        self._kept: IntArray = np.full(1, _UNDECIDED, np.int64)

    def start(self, num_requests: int) -> None:
        """Begins that many requests, each undecided."""
        super().start(num_requests)
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
        """Nothing that happens later matters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerRequestSettings:
    """Hyper-parameters.

    Attributes:
        ridge: Prior precision of every weight but the constants', in requests.
    """

    ridge: float = 10.0

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.ridge <= 0:
            raise ConfigError(f"Expected agent.ridge above 0, got {self.ridge}.")


class RequestTimes(Rule):
    """The gamma of least predicted time, linear in the observation, with weights for each compression.

    Args:
        times: Tells compressions apart.
        mean: Shape [features].
        std: Shape [features], above zero.
        weights: Shape [compressions, gamma_max + 1, features + 1]; the last column is a constant.
    """

    def __init__(self, times: StepTimes, mean: FloatArray, std: FloatArray, weights: Float64) -> None:
        super().__init__("request-times")
        self.times, self.mean, self.std, self.weights = times, mean, std, weights

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the gamma that is predicted to be fastest."""
        inputs = _inputs(observations, self.mean, self.std)
        chosen: IntArray = np.einsum("ngf,nf->ng", self.weights[self.times.which(observations)], inputs).argmin(axis=1)
        return chosen

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """What was learned."""
        return {"mean": self.mean, "std": self.std, "weights": self.weights}


def _inputs(observations: FloatArray, mean: FloatArray, std: FloatArray) -> Float64:
    scaled = (observations.astype(np.float64) - mean) / std
    return np.concatenate([scaled, np.ones((len(scaled), 1))], axis=1)


def fit_per_request(train: TraceSet, cost: CostTable, settings: PerRequestSettings) -> PerRequest:
    """Fits each request's seconds a token under every constant gamma by ridge regression, weighed by tokens."""
    compiled, compiled_cost = compile_pair(train, cost)
    batch = ReplayBatch(compiled, compiled_cost, 1)
    playable = batch.playable
    observations = batch.first_observations[playable]
    records = [replay_fixed(compiled, compiled_cost, gamma) for gamma in range(compiled.gamma_max + 1)]
    tokens = records[0].num_tokens[playable].astype(np.float64)
    seconds = np.stack([record.seconds[playable] for record in records], axis=1) / tokens[:, None]
    times = StepTimes.of(cost, train.compressions, gamma_max=compiled.gamma_max)
    mean, std = observations.mean(axis=0), observations.std(axis=0)
    std = np.where(std < _MIN_STD, np.float32(1.0), std)
    inputs, which = _inputs(observations, mean, std), times.which(observations)
    penalty = np.diag([settings.ridge] * len(mean) + [1e-9])
    weights = []
    for row in range(len(times.compressions)):
        x, y = inputs[which == row], seconds[which == row]
        weight = tokens[which == row] / max(tokens[which == row].mean(), 1.0) if (which == row).any() else tokens[:0]
        weights.append(np.linalg.solve(x.T @ (weight[:, None] * x) + penalty, x.T @ (weight[:, None] * y)).T)
    return PerRequest(RequestTimes(times, mean, std, np.stack(weights)), name="per-request")
