# SPDX-License-Identifier: Apache-2.0
"""Fits survival controllers to recordings: collect states with the outcome of every draft, fit, repeat, calibrate.

Replay reveals how far the deepest draft from a state is accepted, so no sample is censored.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from speckv.agents.registry import TrainingData
from speckv.agents.self_timed import SelfTimed, self_timed
from speckv.agents.survival.controllers import FitSettings, SurvivalGamma, SurvivalSettings, SurvivalStopping
from speckv.cost import CompiledCost
from speckv.cost.live import TimesPrior
from speckv.cost.times import NEVER, LiveStepTimes, StepTimes
from speckv.errors import TraceError
from speckv.evaluation.replays import compile_pair
from speckv.observation import hidden_columns, hide_from, observe_draft
from speckv.replay import CompiledTraces, VisitedStates, replay_controller, visit
from speckv.runtime.constant import ConstantGamma, Memoryless
from speckv.runtime.network import Network, fold
from speckv.types import Controller, FloatArray, IntArray

DEPTH_DECAY = 0.88
"""A state gives a sample at depth d with this probability to the power d: shallow decisions are the frequent ones."""
MIN_STD = 1e-3
EVERYDAY_GAMMAS = (2, 5)
"""Constants whose states every fit begins with."""
TYPICAL_GAMMA = 3
UNTIMED = ("cost_ratio", "compression")
"""Features that a self-timed controller must not use: what they stand for is learned while decoding."""
SELF_TIMED_PRICE_SCALE = 1.1
"""Costs at most 0.2 % against a scale for each cost table."""
FLOORS = (NEVER, 0, 1)
"""Tried in this order: the first of equals is kept, and what never drafts needs no draft model."""
PRICE_SCALES = (1.0, 0.95, 1.05, 0.9, 1.1, 0.85, 1.15, 0.8, 1.2)
"""Tried in this order: the first of equals is kept."""


class RandomGammaSampler(Memoryless):
    """Draws gamma anew for every step, small ones more often, so that states of every kind occur."""

    name = "random"
    charges_decision = False

    def __init__(self, rng: np.random.Generator, gamma_max: int) -> None:
        self._rng, self._gamma_max = rng, gamma_max

    def act(self, observation: FloatArray) -> int:
        """Returns a draw."""
        return int(self.act_batch(observation[np.newaxis])[0])

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns a draw for each row."""
        square = self._rng.random(len(observations)) ** 2
        return np.minimum((square * (self._gamma_max + 1)).astype(np.int64), self._gamma_max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Inputs of shape [M, features] with outcomes.

    Attributes:
        labels: Shape [M, outputs]; 0 or 1, or a share between.
        known: Shape [M, outputs]; 0 where the text or the budget ended before an outcome.
    """

    inputs: FloatArray
    labels: FloatArray
    known: FloatArray


def collect(compiled: CompiledTraces, cost: CompiledCost, controllers: Sequence[Controller]) -> VisitedStates:
    """Collects the states that some controllers meet."""
    parts = [visit(compiled, cost, controller) for controller in controllers]
    if not any(p.limits.any() for p in parts):
        raise TraceError(
            "Expected train prompts with a position from which something can be drafted, got none: the texts are too "
            "short. Record longer texts."
        )
    return VisitedStates(
        observations=np.concatenate([p.observations for p in parts]),
        places=np.concatenate([p.places for p in parts]),
        limits=np.concatenate([p.limits for p in parts]),
        accepted=np.concatenate([p.accepted for p in parts]),
    )


def before_steps(states: VisitedStates, gamma_max: int) -> Samples:
    """Samples before a step: does the draft survive to each depth from 1 to gamma_max?"""
    depths = np.arange(1, gamma_max + 1)
    return Samples(
        inputs=states.observations,
        labels=(states.accepted[:, None] >= depths).astype(np.float32),
        # A draft that was rejected before it had to end has not survived to any depth behind.
        known=((states.limits[:, None] >= depths) | (states.accepted < states.limits)[:, None]).astype(np.float32),
    )


def inside_steps(states: VisitedStates, compiled: CompiledTraces, rng: np.random.Generator) -> Samples:
    """Samples after each drafted token, at random depths: would the next one be accepted, with all before it?"""
    chance = DEPTH_DECAY ** np.arange(compiled.gamma_max, dtype=np.float64)
    kept = rng.random((len(states.limits), compiled.gamma_max)) < chance
    kept &= np.arange(compiled.gamma_max) < states.limits[:, None]
    rows, depths = np.nonzero(kept)
    drafts = compiled.drafts[states.places[rows], depths]
    labels = (states.accepted[rows] > depths).astype(np.float32)[:, None]
    return Samples(inputs=observe_draft(states.observations[rows], drafts), labels=labels, known=np.ones_like(labels))


def fit_probabilities(samples: Samples, settings: FitSettings, *, seed: int, hide: Sequence[str] = ()) -> Network:
    """Fits a network from raw inputs to the log-odds of each outcome, without PyTorch's global generator."""
    generator = torch.Generator().manual_seed(seed)
    mean = samples.inputs.mean(axis=0, dtype=np.float64).astype(np.float32)
    deviation = samples.inputs.std(axis=0, dtype=np.float64).astype(np.float32)
    std = np.where(deviation < MIN_STD, np.float32(1.0), deviation).astype(np.float32)
    if hide:
        mean, std = hide_from(mean, std, hidden_columns(hide))
    inputs = torch.from_numpy((samples.inputs - mean) / std)
    labels, known = torch.from_numpy(samples.labels), torch.from_numpy(samples.known)
    sizes = [inputs.shape[1], *settings.hidden, labels.shape[1]]
    layers = [_layer(a, b, generator) for a, b in itertools.pairwise(sizes)]
    # Outcomes start at their frequencies, so that the first steps are not spent on finding those.
    frequency = ((labels * known).sum(0) / known.sum(0).clamp(min=1)).clamp(1e-3, 1 - 1e-3)
    layers[-1].bias.data = torch.log(frequency / (1 - frequency))
    parameters = [p for layer in layers for p in layer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    size = min(settings.batch_size, len(inputs))
    total = settings.epochs * (len(inputs) // size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 0.5 * (1 + math.cos(math.pi * k / total)))
    for _ in range(settings.epochs):
        order = torch.randperm(len(inputs), generator=generator)
        for begin in range(0, size * (len(inputs) // size), size):
            rows = order[begin : begin + size]
            loss = F.binary_cross_entropy_with_logits(_forward(layers, inputs[rows]), labels[rows], known[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    weights, biases = ([_array(getattr(layer, name)) for layer in layers] for name in ("weight", "bias"))
    return Network(*fold(mean, std, weights, biases))


def _layer(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _forward(layers: list[nn.Linear], values: torch.Tensor) -> torch.Tensor:
    for layer in layers[:-1]:
        values = torch.tanh(layer(values))
    last: torch.Tensor = layers[-1](values)
    return last


def _array(tensor: torch.Tensor) -> FloatArray:
    return np.array(tensor.detach().numpy(), np.float32)


def fit_survival(settings: SurvivalSettings, data: TrainingData) -> SurvivalGamma:
    """Fits the controller that decides before steps, with the times of every compression of the cost table."""
    pair = compile_pair(data.train, data.cost)
    times = StepTimes.of(data.cost, gamma_max=data.train.metadata.gamma_max)
    fitted, _ = _fit(*pair, times, settings, seed=data.seed, inside=False, hide=data.hide)
    trials = [SurvivalGamma(fitted.before, times, np.full(len(times.compressions), floor)) for floor in FLOORS]
    floor = np.array(FLOORS)[_best_of(trials, *pair, times)]
    return SurvivalGamma(fitted.before, times, floor, mean_survival(*pair))


def fit_survival_stopping(settings: SurvivalSettings, data: TrainingData) -> SurvivalStopping:
    """Fits the controller that also decides inside steps, as `fit_survival` does."""
    pair = compile_pair(data.train, data.cost)
    times = StepTimes.of(data.cost, gamma_max=data.train.metadata.gamma_max)
    _, fitted = _fit(*pair, times, settings, seed=data.seed, inside=True, hide=data.hide)
    assert fitted is not None
    before, inside = fitted.before.before, fitted.inside
    ones = np.ones(len(times.compressions))

    def with_(floor: IntArray, scale: float) -> SurvivalStopping:
        return SurvivalStopping(before, inside, times, floor, scale * ones)

    trials = [with_(ones.astype(np.int64) * value, 1.0) for value in FLOORS]
    floor = np.array(FLOORS)[_best_of(trials, *pair, times)]
    scale = _best_of([with_(floor, value) for value in PRICE_SCALES], *pair, times)
    return SurvivalStopping(before, inside, times, floor, np.array(PRICE_SCALES)[scale], mean_survival(*pair))


def mean_survival(compiled: CompiledTraces, cost: CompiledCost) -> NDArray[np.float64]:
    """Shape [gamma_max]; share of drafts that survive to each depth, from the states that a constant gamma meets."""
    states = collect(compiled, cost, [ConstantGamma(min(TYPICAL_GAMMA, compiled.gamma_max))])
    samples = before_steps(states, compiled.gamma_max)
    known = np.maximum(samples.known.sum(axis=0), 1.0)
    shares: NDArray[np.float64] = (samples.labels * samples.known).sum(axis=0, dtype=np.float64) / known
    return shares


def fit_self_timed(settings: SurvivalSettings, data: TrainingData, *, inside: bool = True) -> SelfTimed:
    """Fits acceptance to recordings without any cost table; the times are learned while decoding.

    States are collected with the times of the prior. Compression and cost ratio are hidden from the networks. With
    `inside` False it decides before steps alone.
    """
    compiled, cost = compile_pair(data.train, data.cost)
    gamma_max, names = data.train.metadata.gamma_max, data.train.compressions
    prior = LiveStepTimes.start(names, [TimesPrior.flat(gamma_max)] * len(names))
    hide = (*UNTIMED, *data.hide)
    before, fitted = _fit(compiled, cost, prior, settings, seed=data.seed, inside=inside, hide=hide)
    scale, mean = np.full(len(names), SELF_TIMED_PRICE_SCALE), mean_survival(compiled, cost)
    inner: SurvivalGamma | SurvivalStopping = SurvivalGamma(before.before, prior, mean_survival=mean)
    if fitted is not None:
        inner = SurvivalStopping(before.before, fitted.inside, prior, price_scale=scale, mean_survival=mean)
    return self_timed(inner, names, gamma_max=gamma_max, name="self-timed" if inside else "self-timed-step")


def fit_self_timed_step(settings: SurvivalSettings, data: TrainingData) -> SelfTimed:
    """As `fit_self_timed`, for one decision a step."""
    return fit_self_timed(settings, data, inside=False)


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
    which = np.array([times.compressions.index(name) for name in compiled.compressions])
    seconds = [
        np.bincount(which, replay_controller(trial, compiled, cost).seconds, len(times.compressions))
        for trial in trials
    ]
    best: IntArray = np.stack(seconds).argmin(axis=0)
    return best
