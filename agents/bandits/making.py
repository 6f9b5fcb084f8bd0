# SPDX-License-Identifier: Apache-2.0
"""How online learners are begun and trained on the train prompts: the same for all of them."""

from typing import Any

import numpy as np

from speckv.agents.bandits.base import Bandit
from speckv.agents.bandits.linear import MIN_STD, LastHidden, Scaling
from speckv.agents.registry import TrainingData
from speckv.cost import CompiledCost
from speckv.evaluation.replays import compile_pair
from speckv.replay import CompiledTraces, replay_stream, visit
from speckv.runtime.constant import ConstantGamma
from speckv.types import Controller


def begin(kind: type[Any], settings: Any, data: TrainingData) -> Bandit:
    """Makes a learner that has learned nothing yet; scales and networks of its features come from the train prompts."""
    context: tuple[object, ...] = ()
    if kind.reads is Scaling:
        context = (measure_scaling(*compile_pair(data.train, data.cost)),)
    elif kind.reads is LastHidden:
        from speckv.agents.survival.fit import fit_survival  # late, because PyTorch takes seconds to import

        context = (LastHidden(fit_survival(settings.network(), data).before),)
    bandit: Bandit = kind(settings, data.times, *context, data.seed)
    return bandit


def train(learner: Controller, data: TrainingData) -> None:
    """Decodes the train prompts once with a learner, in a random order; a bandit's draws begin anew afterwards."""
    compiled, compiled_cost = compile_pair(data.train, data.cost)
    order = np.random.default_rng(data.seed).permutation(len(compiled)).tolist()
    replay_stream(learner, compiled, compiled_cost, order=order)
    if isinstance(learner, Bandit):
        learner.reseed(data.seed)


def measure_scaling(compiled: CompiledTraces, cost: CompiledCost, gamma: int = 3) -> Scaling:
    """Mean and deviation of each feature in the states that a constant gamma meets."""
    rows = visit(compiled, cost, ConstantGamma(min(gamma, compiled.gamma_max))).observations
    std = rows.std(axis=0)
    return Scaling(mean=rows.mean(axis=0), std=np.where(std < MIN_STD, np.float32(1.0), std))
