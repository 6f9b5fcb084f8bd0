# SPDX-License-Identifier: Apache-2.0
"""Agents that play constants: one for all, or tuned by replay for each compression or request."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from speckv.agents.per_request import PerRequestGamma, PerRequestSettings, RequestTimes, linear_inputs
from speckv.agents.registry import TrainingData
from speckv.cost.times import StepTimes
from speckv.errors import ConfigError
from speckv.evaluation.replays import compile_pair, fixed_name, tune_fixed
from speckv.replay import ReplayBatch, replay_fixed
from speckv.runtime.constant import ConstantGamma, ConstantPerCompression
from speckv.types import GAMMA_MAX

_MIN_STD = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedSettings:
    """Hyper-parameters; `gamma` is in tokens."""

    gamma: int


class FixedGamma(ConstantGamma):
    """Always drafts `gamma` tokens, at most as many as recordings hold; 0 is plain decoding.

    >>> FixedGamma(4).name
    'agent fixed-4'
    """

    kind = ConstantGamma.kind
    settings_class = FixedSettings

    def __init__(self, gamma: int) -> None:
        if not 0 <= gamma <= GAMMA_MAX:
            raise ConfigError(f"Expected gamma from 0 to {GAMMA_MAX} tokens, got {gamma!r}.")
        # A table lists every constant under its plain name already.
        super().__init__(gamma, name=f"agent {fixed_name(gamma)}")

    @classmethod
    def make(cls, settings: FixedSettings, data: TrainingData) -> "FixedGamma":  # noqa: ARG003 - as for all agents
        """Makes the constant."""
        return cls(settings.gamma)


@dataclass(frozen=True, slots=True, kw_only=True)
class BestFixedSettings:
    """Empty: `best_fixed` is tuned on the train prompts."""


class BestFixedGamma(ConstantPerCompression):
    """The best constant of each compression, tuned on train prompts: the baseline."""

    kind = ConstantPerCompression.kind
    settings_class = BestFixedSettings

    def __init__(self, gammas: Mapping[str, int]) -> None:
        super().__init__(gammas, name="agent best-fixed")
        for compression, gamma in gammas.items():
            if gamma > GAMMA_MAX:
                raise ConfigError(f"Expected gamma of {compression} from 0 to {GAMMA_MAX}, got {gamma}.")

    @classmethod
    def make(cls, settings: BestFixedSettings, data: TrainingData) -> "BestFixedGamma":  # noqa: ARG003 - as above
        """Chooses each compression's gamma by total tokens over total seconds on the train prompts."""
        return cls(tune_fixed(data.train, data.cost).best())


def fit_per_request(settings: PerRequestSettings, data: TrainingData) -> PerRequestGamma:
    """Fits each request's seconds a token under every constant gamma by ridge regression, weighed by tokens."""
    compiled, compiled_cost = compile_pair(data.train, data.cost)
    batch = ReplayBatch(compiled, compiled_cost, 1)
    playable = batch.playable
    observations = batch.first_observations[playable]
    records = [replay_fixed(compiled, compiled_cost, gamma) for gamma in range(compiled.gamma_max + 1)]
    tokens = records[0].num_tokens[playable].astype(np.float64)
    seconds = np.stack([record.seconds[playable] for record in records], axis=1) / tokens[:, None]
    times = StepTimes.of(data.cost, data.train.compressions, gamma_max=compiled.gamma_max)
    mean, std = observations.mean(axis=0), observations.std(axis=0)
    std = np.where(std < _MIN_STD, np.float32(1.0), std)
    inputs, which = linear_inputs(observations, mean, std), times.which(observations)
    penalty = np.diag([settings.ridge] * len(mean) + [1e-9])
    weights = []
    for row in range(len(times.compressions)):
        x, y = inputs[which == row], seconds[which == row]
        weight = tokens[which == row] / max(tokens[which == row].mean(), 1.0) if (which == row).any() else tokens[:0]
        weights.append(np.linalg.solve(x.T @ (weight[:, None] * x) + penalty, x.T @ (weight[:, None] * y)).T)
    return PerRequestGamma(RequestTimes(times, mean, std, np.stack(weights)), name="per-request")
