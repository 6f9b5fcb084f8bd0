# SPDX-License-Identifier: Apache-2.0
"""Goodput: the gamma of most expected tokens a second if all tokens are accepted at the recent rate."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from speckv.agents.building import require_ranges
from speckv.agents.rules.base import Rule
from speckv.cost.times import StepTimes
from speckv.observation import SCHEMA
from speckv.runtime.state import ControllerState
from speckv.types import GAMMA_MAX, FloatArray, IntArray

if TYPE_CHECKING:
    from speckv.agents.registry import TrainingData

_RATE = SCHEMA.index("acceptance_ema")


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodputSettings:
    """Hyper-parameters."""

    gamma_max: int

    def __post_init__(self) -> None:
        """Checks ranges."""
        require_ranges(self, gamma_max=(1, GAMMA_MAX))


def expected_tokens(rate: NDArray[np.floating], gamma_max: int) -> NDArray[np.float64]:
    """Shape [N, gamma_max + 1]; mean tokens of a step, 1 + a + ... + a^gamma, at acceptance rates of shape [N].

    Source:
        Leviathan et al. 2023, arXiv:2211.17192, equation 1.

    >>> expected_tokens(np.array([0.5, 1.0]), 2).tolist()
    [[1.0, 1.5, 1.75], [1.0, 2.0, 3.0]]
    """
    powers = np.asarray(rate, np.float64)[:, None] ** np.arange(gamma_max + 1)
    return np.cumsum(powers, axis=1)


class Goodput(Rule):
    """gamma = argmax (1 + a + ... + a^gamma) / seconds(gamma), with a the request's decayed acceptance rate.

    Source:
        Liu et al. 2024, arXiv:2406.14066 (SmartSpec), for a batch of one; its latency model is our cost table.
    """

    kind = "goodput"
    settings_class = GoodputSettings

    def __init__(self, settings: GoodputSettings, times: StepTimes) -> None:
        super().__init__("goodput")
        self.settings = settings
        self.times = times

    @classmethod
    def make(cls, settings: GoodputSettings, data: "TrainingData") -> "Goodput":
        """Makes the rule for a clock."""
        return cls(settings, data.times)

    def state(self) -> ControllerState:
        """Returns settings and times."""
        return ControllerState.of(self.settings, times=self.times)

    @classmethod
    def from_state(cls, state: ControllerState) -> "Goodput":
        """Makes the stored rule."""
        return cls(cls.settings_of(state), state.times())

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the gamma of most expected tokens a second."""
        most = self.settings.gamma_max
        tokens = expected_tokens(observations[:, _RATE], most)
        chosen: IntArray = (tokens / self.times.step_s(observations)[:, : most + 1]).argmax(axis=1)
        return chosen
