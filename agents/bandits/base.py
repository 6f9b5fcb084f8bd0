# SPDX-License-Identifier: Apache-2.0
"""The base of bandits: arms, rewards in units of plain decoding, what was learned for each compression."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from speckv.agents.building import require_gammas
from speckv.agents.storing import StoredController
from speckv.cost.times import StepTimes
from speckv.runtime.state import ControllerState
from speckv.types import FloatArray, IntArray, StepOutcome

Float64 = NDArray[np.float64]


class Features(Protocol):
    """Turns an observation into the input of a linear model."""

    @property
    def dimension(self) -> int:
        """Number of features."""

    def features(self, observation: FloatArray) -> Float64:
        """Shape [dimension]."""

    def state(self) -> ControllerState:
        """Returns what `from_state` needs."""

    @classmethod
    def from_state(cls, state: ControllerState) -> Self:
        """Makes the same features again."""


class Bandit(StoredController, ABC):
    """Chooses an arm, a speculation length, and learns from the step's outcome; with `learns` False it is frozen."""

    charges_decision = True
    learns = True
    reads: type[Features] | None = None
    """What turns an observation into the context; None for bandits without one."""
    learned: tuple[str, ...] = ()
    """Names of the arrays that hold what was learned."""
    of_request: tuple[str, ...] = ("_last",)
    """Names of attributes that belong to the current request; steps of others must not change them in place."""

    def __init__(self, name: str, arms: tuple[int, ...], times: StepTimes, *, seed: int = 0) -> None:
        require_gammas(arms, "arms")
        self.name, self.arms, self.times = name, np.array(arms, np.int64), times
        self.reseed(seed)
        self._last: tuple[int, int, FloatArray] | None = None

    def reseed(self, seed: int) -> None:
        """Begins its draws anew."""
        self.seed, self.rng = seed, np.random.default_rng(seed)

    def state(self) -> ControllerState:
        """Returns what was learned, with the seed at which its draws begin anew."""
        features: Features | None = getattr(self, "features", None)
        context = features.state() if features is not None else ControllerState()
        arrays = {**context.arrays, **self.get_arrays(), "seed": np.array(self.seed)}
        return ControllerState.of(self.settings, times=self.times, arrays=arrays)

    @classmethod
    def from_state(cls, state: ControllerState) -> Self:
        """Makes the stored learner."""
        context = () if cls.reads is None else (cls.reads.from_state(state),)
        bandit = cls(cls.settings_of(state), state.times(), *context, 0)  # type: ignore[call-arg, arg-type]
        bandit.set_arrays({name: state.array(name) for name in bandit.get_arrays()})
        bandit.reseed(int(state.array("seed")))
        return bandit

    def reset(self) -> None:
        """Forgets the request; learned state stays."""
        self._last = None

    def save_request(self) -> object:
        """Returns what belongs to the current request."""
        return tuple(getattr(self, name) for name in self.of_request)

    def load_request(self, request: object) -> None:
        """Continues a request that `save_request` returned."""
        for name, value in zip(self.of_request, cast(tuple[object, ...], request), strict=True):
            setattr(self, name, value)

    def act(self, observation: FloatArray) -> int:
        """Chooses, and keeps choice and observation until `learn` is called."""
        compression = int(self.times.which(observation[np.newaxis])[0])
        arm = self.choose(compression, observation)
        self._last = compression, arm, observation.copy()
        return int(self.arms[arm])

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Chooses for each row in turn, learning nothing in between."""
        return np.array([self.act(row) for row in observations], np.int64)

    def learn(self, outcome: StepOutcome) -> None:
        """Learns from the step that the last decision led to, unless it is frozen."""
        if self._last is not None and self.learns:
            self.update(*self._last, outcome)
        self._last = None

    @abstractmethod
    def choose(self, compression: int, observation: FloatArray) -> int:
        """Returns the index of an arm; `compression` is a row of `times`."""

    @abstractmethod
    def update(self, compression: int, arm: int, observation: FloatArray, outcome: StepOutcome) -> None:
        """Learns from one step; see `choose`."""

    def get_arrays(self) -> dict[str, NDArray[Any]]:
        """Copies the learned state."""
        return {name: np.array(getattr(self, name)) for name in self.learned}

    def set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Restores what `get_arrays` returned."""
        for name in self.learned:
            setattr(self, name, np.array(arrays[name]))

    def largest(self, compression: int) -> float:
        """Greatest reward that any arm can give at the reference context: everything accepted."""
        seconds = self.times.verify_s[compression, self.arms] + self.arms * self.times.draft_s[compression]
        return float(((self.arms + 1) * self.times.verify_s[compression, 0] / seconds).max())

    def speedup(self, compression: int, outcome: StepOutcome) -> float:
        """Tokens a second of a step, in units of plain decoding."""
        plain_s = float(self.times.verify_s[compression, 0])
        return outcome.num_emitted * plain_s / outcome.seconds
