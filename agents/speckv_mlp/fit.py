# SPDX-License-Identifier: Apache-2.0
"""Fits the acceptance rate of drafts in the states that constant gammas meet."""

from collections.abc import Sequence

import numpy as np

from speckv.agents.registry import TrainingData
from speckv.agents.speckv_mlp.controllers import SpecKVMlp, SpecKVMlpCost, SpecKVMlpSettings, acceptance_inputs
from speckv.agents.survival.fit import Samples, collect, fit_probabilities
from speckv.evaluation.replays import compile_pair
from speckv.replay import VisitedStates
from speckv.runtime.constant import ConstantGamma


def acceptance_samples(states: VisitedStates, gammas: Sequence[int], rng: np.random.Generator) -> Samples:
    """One sample a state: the share of a draft of some gamma that is accepted.

    Replay reveals every gamma, so one is drawn for each state; the paper has each state at the gamma of its run alone.
    """
    drafted = rng.choice([gamma for gamma in gammas if gamma > 0], size=len(states.accepted))
    share = np.minimum(states.accepted, drafted) / drafted
    # A draft that was rejected before it had to end has its outcome, however little was left of the text.
    known = (states.limits >= drafted) | (states.accepted < states.limits)
    return Samples(
        inputs=acceptance_inputs(states.observations, drafted),
        labels=share.astype(np.float32)[:, np.newaxis],
        known=known.astype(np.float32)[:, np.newaxis],
    )


def fit_speckv_mlp(settings: SpecKVMlpSettings, data: TrainingData) -> SpecKVMlp:
    """Fits the paper's rule, on the states that its gammas meet as constants."""
    compiled, compiled_cost = compile_pair(data.train, data.cost)
    constants = [ConstantGamma(gamma) for gamma in settings.gammas if gamma > 0]
    states = collect(compiled, compiled_cost, constants)
    samples = acceptance_samples(states, settings.gammas, np.random.default_rng(data.seed))
    return SpecKVMlp(fit_probabilities(samples, settings, seed=data.seed), settings.gammas)


def fit_speckv_mlp_cost(settings: SpecKVMlpSettings, data: TrainingData) -> SpecKVMlpCost:
    """Fits the same network, and weighs its tokens against the times of a cost table."""
    return SpecKVMlpCost(fit_speckv_mlp(settings, data), data.times)
