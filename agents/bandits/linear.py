# SPDX-License-Identifier: Apache-2.0
"""Contextual bandits with a linear model for each gamma: LinUCB, linear Thompson sampling, NeuralLinear."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from speckv.agents.bandits.base import Bandit, Features, Float64
from speckv.agents.building import FROM_ZERO, SHARE, require_above_zero, require_ranges
from speckv.agents.survival.controllers import SurvivalSettings
from speckv.cost.times import StepTimes
from speckv.errors import ConfigError
from speckv.runtime.network import Network
from speckv.runtime.state import ControllerState
from speckv.types import FloatArray, StepOutcome

MIN_STD = 1e-3
"""A feature that varies less is a constant and is left in its own units."""
MAX_VARIANCE = 1e3
"""Forgetting lets the variance of directions that are never visited grow without bound; above this one a regression
forgets nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSettings:
    """Hyper-parameters.

    Attributes:
        width: Of the confidence bound, or of the draws.
        forget: Share of the past that each update keeps; below 1 for drifting streams.
        side_information: "none" learns from the arm played, "smaller" also from all smaller arms, "naive" from larger
            arms too after a rejection, which is biased.
    """

    arms: tuple[int, ...]
    width: float
    ridge: float
    forget: float
    side_information: str

    def __post_init__(self) -> None:
        """Checks ranges."""
        require_ranges(self, width=FROM_ZERO, forget=SHARE)
        require_above_zero(self, "ridge", "forget")
        if self.side_information not in ("none", "smaller", "naive"):
            raise ConfigError(f"Expected agent.side_information none, smaller or naive, got {self.side_information!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuralLinearSettings(LinearSettings):
    """Hyper-parameters: those of the linear model, and those of `survival` for the network."""

    hidden: tuple[int, ...]
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    rounds: int

    def __post_init__(self) -> None:
        """Checks ranges."""
        LinearSettings.__post_init__(self)  # a plain super() breaks in dataclasses with slots
        self.network()

    def network(self) -> SurvivalSettings:
        """Settings of the network alone."""
        return SurvivalSettings(**{f.name: getattr(self, f.name) for f in fields(SurvivalSettings)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """Scales an observation, of shape [features], to the features of a linear model, a constant last."""

    mean: FloatArray
    std: FloatArray

    @property
    def dimension(self) -> int:
        """Number of features."""
        return len(self.mean) + 1

    def features(self, observation: FloatArray) -> Float64:
        """Shape [dimension]."""
        return np.append((observation - self.mean) / self.std, 1.0).astype(np.float64)

    def state(self) -> ControllerState:
        """Returns the scale."""
        return ControllerState.of(arrays={"mean": self.mean, "std": self.std})

    @classmethod
    def from_state(cls, state: ControllerState) -> "Scaling":
        """Makes the stored scale."""
        state.require_same_features()
        return cls(mean=state.array("mean"), std=state.array("std"))


class RidgeBank:
    """Ridge regressions that share their inputs, updated one sample at a time (Sherman and Morrison)."""

    def __init__(self, count: int, dimension: int, *, ridge: float, forget: float = 1.0) -> None:
        self.inverse: Float64 = np.stack([np.eye(dimension) / ridge] * count)
        self.sums: Float64 = np.zeros((count, dimension))
        self.weights: Float64 = np.zeros((count, dimension))
        self._forget = forget

    def get_arrays(self) -> dict[str, NDArray[Any]]:
        """Copies the learned state."""
        return {"inverse": self.inverse.copy(), "sums": self.sums.copy(), "weights": self.weights.copy()}

    def set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Restores a copied state."""
        self.inverse, self.sums, self.weights = (np.array(arrays[name]) for name in ("inverse", "sums", "weights"))

    def predict(self, x: Float64) -> tuple[Float64, Float64]:
        """Means and standard deviations (for unit noise) of every regression at an input."""
        variance = np.maximum((self.inverse @ x) @ x, 0.0)
        return self.weights @ x, np.sqrt(variance)

    def update(self, rows: NDArray[np.int64], x: Float64, y: Float64) -> None:
        """Adds one sample to some regressions."""
        inverse = self.inverse[rows]
        if self._forget < 1.0:
            largest = np.einsum("kii->ki", inverse).max(axis=1)
            share = np.where(largest / self._forget <= MAX_VARIANCE, self._forget, 1.0)
            inverse = inverse / share[:, None, None]
            self.sums[rows] *= share[:, None]
        along = inverse @ x
        # The product first: symmetric to the last bit. What rounding adds to one side, forgetting would blow up.
        inverse = inverse - along[:, :, None] * along[:, None, :] / (1.0 + along @ x)[:, None, None]
        self.inverse[rows] = inverse
        self.sums[rows] += y[:, None] * x
        self.weights[rows] = np.einsum("kij,kj->ki", inverse, self.sums[rows])


class RidgeBandit(Bandit):
    """A bandit that learns `count` ridge regressions on features of the observation."""

    reads: type[Features] | None = Scaling

    def __init__(
        self, settings: Any, arms: tuple[int, ...], times: StepTimes, features: Features, seed: int, *, count: int
    ) -> None:
        super().__init__(self.kind.replace("_", "-"), arms, times, seed=seed)
        self.settings, self.features = settings, features
        self.bank = RidgeBank(count, features.dimension, ridge=settings.ridge, forget=settings.forget)

    def get_arrays(self) -> dict[str, NDArray[Any]]:
        """Copies the learned state."""
        return self.bank.get_arrays()

    def set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Restores a copied state."""
        self.bank.set_arrays(arrays)


class _Linear(RidgeBandit):
    def __init__(self, settings: LinearSettings, times: StepTimes, features: Features, seed: int) -> None:
        super().__init__(settings, settings.arms, times, features, seed, count=len(settings.arms))

    def update(self, compression: int, arm: int, observation: FloatArray, outcome: StepOutcome) -> None:
        rows = np.array(revealed(self.arms, arm, outcome, self.settings.side_information))
        played = self.arms[rows]
        accepted = np.minimum(played, outcome.num_accepted)
        seconds = self.times.step_s(observation[np.newaxis])[0, played] - self.times.controller_s
        rewards = (accepted + 1) * self.times.verify_s[compression, 0] / seconds
        rewards[rows == arm] = self.speedup(compression, outcome)
        self.bank.update(rows, self.features.features(observation), rewards)


def revealed(arms: NDArray[np.int64], arm: int, outcome: StepOutcome, side_information: str) -> list[int]:
    """Indices of the arms whose outcome a step reveals.

    A step reveals every smaller gamma, but larger ones only by a rejection, so learning these ("naive") is biased.
    """
    if side_information == "none" or outcome.num_drafted < arms[arm]:
        return [arm]
    known = list(range(arm + 1))
    if side_information == "naive" and outcome.num_accepted < outcome.num_drafted:
        known = list(range(len(arms)))
    return known


class LinUcb(_Linear):
    """argmax mean + width * standard deviation.

    Source:
        Li et al. 2010, arXiv:1003.0146 (LinUCB with disjoint models).
    """

    kind = "linucb"
    settings_class = LinearSettings

    def choose(self, compression: int, observation: FloatArray) -> int:
        """Returns the arm of the greatest bound."""
        del compression
        mean, spread = self.bank.predict(self.features.features(observation))
        return int((mean + self.settings.width * spread).argmax())


class LinThompson(_Linear):
    """Draws each arm's value from its posterior at this input and plays the greatest.

    Source:
        Agrawal and Goyal 2013, arXiv:1209.3352; drawn in the space of values, which has the same marginals.
    """

    kind = "lints"
    settings_class: ClassVar[type[Any]] = LinearSettings

    def choose(self, compression: int, observation: FloatArray) -> int:
        """Returns the arm of the greatest draw."""
        del compression
        mean, spread = self.bank.predict(self.features.features(observation))
        return int((mean + self.settings.width * spread * self.rng.standard_normal(len(mean))).argmax())


class LastHidden:
    """The last hidden layer of a tanh network, a constant feature last."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._hidden = Network(network.weights[:-1], network.biases[:-1])

    @property
    def dimension(self) -> int:
        """Number of features."""
        return len(self._hidden.biases[-1]) + 1

    def features(self, observation: FloatArray) -> Float64:
        """Shape [dimension]."""
        return np.append(np.tanh(self._hidden.one(observation)), 1.0).astype(np.float64)

    def state(self) -> ControllerState:
        """Returns the network."""
        return ControllerState.of(networks={"features": self.network})

    @classmethod
    def from_state(cls, state: ControllerState) -> "LastHidden":
        """Makes the stored features."""
        return cls(state.network("features"))


class NeuralLinear(LinThompson):
    """Draws each arm's value from a linear posterior over features that `survival` fits on train prompts.

    Source:
        Riquelme, Tucker and Snoek 2018, arXiv:1802.09127 (NeuralLinear). There the network is trained on the rewards
        repeatedly, and the noise has an inverse-gamma posterior; here it is trained on survival once, and `width` is
        the noise's deviation.
    """

    kind = "neural_linear"
    settings_class = NeuralLinearSettings
    reads = LastHidden
