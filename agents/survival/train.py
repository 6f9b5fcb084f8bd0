# SPDX-License-Identifier: Apache-2.0
"""From recordings to survival controllers: collect states, fit, and again with what the fitted one meets."""

import numpy as np

from agents.survival.controllers import SurvivalGamma, SurvivalStopping
from agents.survival.fit import fit_probabilities
from agents.survival.samples import RandomGamma, before_steps, collect, inside_steps
from agents.survival.settings import SurvivalSettings
from speckv.cost import CostTable
from speckv.cost.times import StepTimes
from speckv.evaluation.compare import compile_pair
from speckv.runtime.constant import ConstantGamma
from speckv.traces import TraceSet
from speckv.types import Controller

EVERYDAY_GAMMAS = (2, 5)
"""Constants whose states every fit begins with."""


def fit_survival(train: TraceSet, cost: CostTable, settings: SurvivalSettings, *, seed: int) -> SurvivalGamma:
    """Fits the controller that decides before steps."""
    fitted, _ = _fit(train, cost, settings, seed=seed, inside=False)
    assert isinstance(fitted, SurvivalGamma)
    return fitted


def fit_survival_stopping(
    train: TraceSet, cost: CostTable, settings: SurvivalSettings, *, seed: int
) -> SurvivalStopping:
    """Fits the controller that also decides inside steps."""
    _, fitted = _fit(train, cost, settings, seed=seed, inside=True)
    assert fitted is not None
    return fitted


def _fit(
    train: TraceSet, cost: CostTable, settings: SurvivalSettings, *, seed: int, inside: bool
) -> tuple[SurvivalGamma, SurvivalStopping | None]:
    compiled, compiled_cost = compile_pair(train, cost)
    times = StepTimes.of(cost, train.compressions, gamma_max=compiled.gamma_max)
    rng = np.random.default_rng(seed)
    met: list[Controller] = [
        RandomGamma(rng, compiled.gamma_max),
        *(ConstantGamma(gamma) for gamma in EVERYDAY_GAMMAS),
    ]
    for number in range(settings.rounds):
        states = collect(compiled, compiled_cost, met)
        before = fit_probabilities(before_steps(states, compiled.gamma_max), settings, seed=seed + number)
        chooser, stopper = SurvivalGamma(before, times), None
        if inside:
            within = fit_probabilities(inside_steps(states, compiled, rng), settings, seed=seed + number)
            stopper = SurvivalStopping(before, within, times)
        met.append(stopper or chooser)
    return chooser, stopper
