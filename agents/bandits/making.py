# SPDX-License-Identifier: Apache-2.0
"""How online learners are begun and shown the train prompts: the same for all of them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from agents.bandits.base import Bandit
from agents.bandits.linear import MIN_STD, Scaling
from agents.bandits.neural import LastHidden
from speckv.cost import CompiledCost, CostTable
from speckv.cost.times import StepTimes
from speckv.evaluation.replays import compile_pair
from speckv.replay import CompiledTraces, replay_stream, visit
from speckv.runtime.constant import ConstantGamma
from speckv.traces import TraceSet


def begin(
    kind: Callable[..., Bandit], context: str, settings: Any, train: TraceSet, cost: CostTable, seed: int
) -> Bandit:
    """Makes a learner that has learned nothing yet, but for how observations become features.

    Args:
        kind: Its class.
        context: One of `storing.CONTEXTS`.
        settings: Its settings.
        train: Train prompts; scales and networks come from them.
        cost: The clock.
        seed: Of its draws and of the network.
    """
    times = StepTimes.of(cost, train.compressions)
    if context == "none":
        return kind(settings, times, seed)
    if context == "scaled":
        return kind(settings, times, measure_scaling(*compile_pair(train, cost)), seed)
    from agents.survival.train import fit_survival  # late, because PyTorch takes seconds to import

    fitted = fit_survival(train, cost, settings.network(), seed=seed)
    return kind(settings, times, LastHidden(fitted.before), seed)


def show(bandit: Bandit, train: TraceSet, cost: CostTable, seed: int) -> None:
    """Lets a learner decode the train prompts once, in a random order; its draws begin anew afterwards."""
    compiled, compiled_cost = compile_pair(train, cost)
    order = np.random.default_rng(seed).permutation(len(compiled)).tolist()
    replay_stream(bandit, compiled, compiled_cost, order=order)
    bandit.reseed(seed)


def measure_scaling(compiled: CompiledTraces, cost: CompiledCost, gamma: int = 3) -> Scaling:
    """Mean and deviation of each feature in the states that a constant gamma meets."""
    rows = visit(compiled, cost, ConstantGamma(min(gamma, compiled.gamma_max))).observations
    std = rows.std(axis=0)
    return Scaling(mean=rows.mean(axis=0), std=np.where(std < MIN_STD, np.float32(1.0), std))
