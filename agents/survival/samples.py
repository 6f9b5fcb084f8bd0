# SPDX-License-Identifier: Apache-2.0
"""What the survival models learn from: states that controllers meet, with the outcome of every draft from there.

Replay knows how far the deepest draft from a state is accepted, so every sample has its full outcome: nothing is
censored, and no sample is kept or left out because of how it ended, which would bias what is learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speckv.cost import CompiledCost
from speckv.errors import TraceError
from speckv.observation import observe_draft
from speckv.replay import CompiledTraces, VisitedStates, visit
from speckv.types import Controller, FloatArray, IntArray, StepOutcome

DEPTH_DECAY = 0.88
"""A state gives a sample at depth d with this probability to the power d: shallow decisions are the frequent ones."""


class RandomGammaSampler:
    """Draws gamma anew for every step, small ones more often, so that states of every kind are met.

    Args:
        rng: Source of the draws.
        gamma_max: In tokens.
    """

    name = "random"
    charges_decision = False

    def __init__(self, rng: np.random.Generator, gamma_max: int) -> None:
        self._rng, self._gamma_max = rng, gamma_max

    def reset(self) -> None:
        """Nothing to forget."""

    def act(self, observation: FloatArray) -> int:
        """Returns a draw."""
        return int(self.act_batch(observation[np.newaxis])[0])

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns a draw for each row."""
        square = self._rng.random(len(observations)) ** 2
        return np.minimum((square * (self._gamma_max + 1)).astype(np.int64), self._gamma_max)

    def learn(self, outcome: StepOutcome) -> None:
        """Learns nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Inputs with outcomes.

    Attributes:
        inputs: Shape [M, features].
        labels: Shape [M, outputs]; 0 or 1, or a share between.
        known: Shape [M, outputs]; 0 where an outcome is unknown, because the text or the budget ended before.
    """

    inputs: FloatArray
    labels: FloatArray
    known: FloatArray


def collect(compiled: CompiledTraces, cost: CompiledCost, controllers: Sequence[Controller]) -> VisitedStates:
    """Collects the states that some controllers meet.

    Raises:
        TraceError: if nothing can be drafted from any of them.
    """
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
    """Samples of what is known before a step: does the draft survive to each depth from 1 to gamma_max?"""
    depths = np.arange(1, gamma_max + 1)
    return Samples(
        inputs=states.observations,
        labels=(states.accepted[:, None] >= depths).astype(np.float32),
        # A draft that was rejected before it had to end has not survived to any depth behind.
        known=((states.limits[:, None] >= depths) | (states.accepted < states.limits)[:, None]).astype(np.float32),
    )


def inside_steps(states: VisitedStates, compiled: CompiledTraces, rng: np.random.Generator) -> Samples:
    """Samples of what is known behind each drafted token: would the next one be accepted, with all before it?

    Args:
        states: Where steps began.
        compiled: The recordings.
        rng: Chooses the depths, blind to the outcomes.
    """
    chance = DEPTH_DECAY ** np.arange(compiled.gamma_max, dtype=np.float64)
    kept = rng.random((len(states.limits), compiled.gamma_max)) < chance
    kept &= np.arange(compiled.gamma_max) < states.limits[:, None]
    rows, depths = np.nonzero(kept)
    drafts = compiled.drafts[states.places[rows], depths]
    labels = (states.accepted[rows] > depths).astype(np.float32)[:, None]
    return Samples(inputs=observe_draft(states.observations[rows], drafts), labels=labels, known=np.ones_like(labels))
