# SPDX-License-Identifier: Apache-2.0
"""The paper's rule, gamma = argmax (predicted acceptance rate * gamma + 1), and the same over time.

Source:
    SpecKV, arXiv:2605.02888. There the rule reads signals of the tokens whose number it chooses, which exist only after
    drafting, and the network has ReLU and clips; here the signals are of the last drafting step, the layers are tanh
    and the output is logistic.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speckv.agents.building import require_gammas
from speckv.agents.rules.base import Rule
from speckv.agents.survival.controllers import FitSettings, logistic
from speckv.cost.times import StepTimes
from speckv.errors import ConfigError
from speckv.observation import SCHEMA
from speckv.runtime.network import Network
from speckv.runtime.state import ControllerState, tokens
from speckv.types import FloatArray, IntArray

Float64 = NDArray[np.float64]

FEATURES = (
    "draft_entropy_mean",
    "draft_confidence_mean",
    "draft_entropy_max",
    "draft_confidence_min",
    "bits_per_weight",
)
"""The paper's five features, of the last drafting step."""

GAMMA_SCALE = 16.0
_COLUMNS = [SCHEMA.index(name) for name in FEATURES]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecKVMlpSettings(FitSettings):
    """Hyper-parameters; the paper's `gammas` and `hidden` by default."""

    gammas: tuple[int, ...]

    def __post_init__(self) -> None:
        """Checks ranges."""
        FitSettings.__post_init__(self)  # a plain super() breaks in dataclasses with slots
        require_gammas(self.gammas, "gammas")
        if self.gammas[-1] == 0:
            raise ConfigError(f"Expected agent.gammas to list one above 0, got {list(self.gammas)}.")


def acceptance_inputs(observations: FloatArray, gammas: ArrayLike) -> FloatArray:
    """Shape [N, 6]; `FEATURES` of observations [N, features], and the gammas [N] to predict for."""
    scaled = np.asarray(gammas, np.float32) / np.float32(GAMMA_SCALE)
    inputs: FloatArray = np.column_stack([observations[:, _COLUMNS], scaled]).astype(np.float32, copy=False)
    return inputs


class SpecKVMlp(Rule):
    """gamma = argmax (acceptance(features, gamma) * gamma + 1): most expected tokens a step, at no price.

    Source:
        SpecKV, arXiv:2605.02888, "SpecKV-fast", with the features of the step before.
    """

    kind = "speckv_mlp"
    settings_class = SpecKVMlpSettings

    def __init__(self, acceptance: Network, gammas: Sequence[int], *, name: str = "speckv-mlp") -> None:
        super().__init__(name)
        self.acceptance = acceptance
        self.gammas = np.array(gammas, np.int64)

    def state(self) -> ControllerState:
        """Returns network and gammas."""
        return ControllerState.of({"gammas": self.gammas.tolist()}, networks={"acceptance": self.acceptance})

    @classmethod
    def from_state(cls, state: ControllerState) -> "SpecKVMlp":
        """Makes the stored controller."""
        gammas = [tokens(gamma) for gamma in state.settings["gammas"]]
        return cls(state.network("acceptance", reads_observations=False), gammas)

    def expected_tokens(self, observations: FloatArray) -> Float64:
        """Shape [N, gammas]; tokens that a step is expected to emit at each gamma on offer."""
        rows = np.repeat(observations, len(self.gammas), axis=0)
        inputs = acceptance_inputs(rows, np.tile(self.gammas, len(observations)))
        rates = logistic(self.acceptance.batch(inputs)[:, 0]).reshape(len(observations), -1)
        return rates * self.gammas + 1.0

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the gamma of most expected tokens."""
        chosen: IntArray = self.gammas[self.expected_tokens(observations).argmax(axis=1)]
        return chosen


class SpecKVMlpCost(Rule):
    """gamma = argmax (acceptance(features, gamma) * gamma + 1) / seconds(gamma): the paper's network, with a price.

    Once it chooses 0, no feature changes and draft lag adds to the price: the rest of the request is decoded plainly.
    """

    kind = "speckv_mlp_cost"
    settings_class = SpecKVMlpSettings

    def __init__(self, paper: SpecKVMlp, times: StepTimes, *, name: str = "speckv-mlp-cost") -> None:
        super().__init__(name)
        self.paper, self.times = paper, times

    def state(self) -> ControllerState:
        """Returns network, gammas and times."""
        return self.paper.state().with_times(self.times)

    @classmethod
    def from_state(cls, state: ControllerState) -> "SpecKVMlpCost":
        """Makes the stored controller."""
        return cls(SpecKVMlp.from_state(state), state.times())

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the gamma of most expected tokens a second."""
        gammas = self.paper.gammas
        rates = self.paper.expected_tokens(observations) / self.times.step_s(observations)[:, gammas]
        chosen: IntArray = gammas[rates.argmax(axis=1)]
        return chosen
