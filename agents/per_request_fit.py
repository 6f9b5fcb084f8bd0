# SPDX-License-Identifier: Apache-2.0
"""How the gamma of a whole request is learned: regressions on what every constant came to."""

import numpy as np

from agents.per_request import PerRequestGamma, PerRequestSettings, RequestTimes, linear_inputs
from speckv.cost import CostTable
from speckv.cost.times import StepTimes
from speckv.evaluation.replays import compile_pair
from speckv.replay import ReplayBatch, replay_fixed
from speckv.traces import TraceSet

_MIN_STD = 1e-3


def fit_per_request(train: TraceSet, cost: CostTable, settings: PerRequestSettings) -> PerRequestGamma:
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
    inputs, which = linear_inputs(observations, mean, std), times.which(observations)
    penalty = np.diag([settings.ridge] * len(mean) + [1e-9])
    weights = []
    for row in range(len(times.compressions)):
        x, y = inputs[which == row], seconds[which == row]
        weight = tokens[which == row] / max(tokens[which == row].mean(), 1.0) if (which == row).any() else tokens[:0]
        weights.append(np.linalg.solve(x.T @ (weight[:, None] * x) + penalty, x.T @ (weight[:, None] * y)).T)
    return PerRequestGamma(RequestTimes(times, mean, std, np.stack(weights)), name="per-request")
