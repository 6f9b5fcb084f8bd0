# SPDX-License-Identifier: Apache-2.0
"""From recordings to survival controllers: collect states, fit, and again with what the fitted one meets; calibrate."""

from collections.abc import Sequence

import numpy as np

from agents.survival.controllers import NEVER, SurvivalGamma, SurvivalStopping
from agents.survival.fit import fit_probabilities
from agents.survival.samples import RandomGammaSampler, before_steps, collect, inside_steps
from agents.survival.settings import SurvivalSettings
from speckv.cost import CompiledCost, CostTable
from speckv.cost.times import StepTimes
from speckv.evaluation.replays import compile_pair
from speckv.replay import CompiledTraces, replay_controller
from speckv.runtime.constant import ConstantGamma
from speckv.traces import TraceSet
from speckv.types import Controller, IntArray

EVERYDAY_GAMMAS = (2, 5)
"""Constants whose states every fit begins with."""

FLOORS = (NEVER, 0, 1)
"""Tried in this order: the first of equals is kept, and what never drafts needs no draft model."""

PRICE_SCALES = (1.0, 0.95, 1.05, 0.9, 1.1, 0.85, 1.15, 0.8, 1.2)
"""Tried in this order: the first of equals is kept."""


def fit_survival(
    train: TraceSet, cost: CostTable, settings: SurvivalSettings, *, seed: int, hide: Sequence[str] = ()
) -> SurvivalGamma:
    """Fits the controller that decides before steps; it knows the times of every compression of the cost table.

    Args:
        train: Recordings to learn from.
        cost: The clock.
        settings: Hyper-parameters.
        seed: Of everything random.
        hide: Features, or groups of them, that the networks are not to see; the cost table's times are known anyway.
    """
    pair = compile_pair(train, cost)
    times = StepTimes.of(cost, gamma_max=train.metadata.gamma_max)
    fitted, _ = _fit(*pair, times, settings, seed=seed, inside=False, hide=hide)
    trials = [SurvivalGamma(fitted.before, times, np.full(len(times.compressions), floor)) for floor in FLOORS]
    return SurvivalGamma(fitted.before, times, np.array(FLOORS)[_best_of(trials, *pair, times)])


def fit_survival_stopping(
    train: TraceSet, cost: CostTable, settings: SurvivalSettings, *, seed: int, hide: Sequence[str] = ()
) -> SurvivalStopping:
    """Fits the controller that also decides inside steps; arguments as for `fit_survival`."""
    pair = compile_pair(train, cost)
    times = StepTimes.of(cost, gamma_max=train.metadata.gamma_max)
    _, fitted = _fit(*pair, times, settings, seed=seed, inside=True, hide=hide)
    assert fitted is not None
    before, inside = fitted.before.before, fitted.inside
    ones = np.ones(len(times.compressions))

    def with_(floor: IntArray, scale: float) -> SurvivalStopping:
        return SurvivalStopping(before, inside, times, floor, scale * ones)

    trials = [with_(ones.astype(np.int64) * value, 1.0) for value in FLOORS]
    floor = np.array(FLOORS)[_best_of(trials, *pair, times)]
    scale = _best_of([with_(floor, value) for value in PRICE_SCALES], *pair, times)
    return SurvivalStopping(before, inside, times, floor, np.array(PRICE_SCALES)[scale])


def _fit(
    compiled: CompiledTraces,
    cost: CompiledCost,
    times: StepTimes,
    settings: SurvivalSettings,
    *,
    seed: int,
    inside: bool,
    hide: Sequence[str],
) -> tuple[SurvivalGamma, SurvivalStopping | None]:
    rng = np.random.default_rng(seed)
    met: list[Controller] = [
        RandomGammaSampler(rng, compiled.gamma_max),
        *(ConstantGamma(gamma) for gamma in sorted({min(g, compiled.gamma_max) for g in EVERYDAY_GAMMAS})),
    ]
    for number in range(settings.rounds):
        states = collect(compiled, cost, met)
        before = fit_probabilities(before_steps(states, compiled.gamma_max), settings, seed=seed + number, hide=hide)
        chooser, stopper = SurvivalGamma(before, times), None
        if inside:
            samples = inside_steps(states, compiled, rng)
            within = fit_probabilities(samples, settings, seed=seed + number, hide=hide)
            stopper = SurvivalStopping(before, within, times)
        met.append(stopper or chooser)
    return chooser, stopper


def _best_of(trials: Sequence[Controller], compiled: CompiledTraces, cost: CompiledCost, times: StepTimes) -> IntArray:
    """Shape [compressions], in the order of `times`; the trial that decodes the train prompts in the least time."""
    which = np.array([times.compressions.index(name) for name in compiled.compressions])
    seconds = [
        np.bincount(which, replay_controller(trial, compiled, cost).seconds, len(times.compressions))
        for trial in trials
    ]
    best: IntArray = np.stack(seconds).argmin(axis=0)
    return best
