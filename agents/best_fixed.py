# SPDX-License-Identifier: Apache-2.0
"""The best constant gamma of each compression, tuned on train prompts: the baseline that a learner has to beat."""

from collections.abc import Mapping

import numpy as np

from speckv.cost import CostTable
from speckv.errors import ConfigError, nearest
from speckv.evaluation.compare import tune_fixed
from speckv.observation import SCHEMA
from speckv.traces import GAMMA_MAX, TraceSet
from speckv.types import BITS_PER_WEIGHT, FloatArray, IntArray, StepOutcome

_FIELD = SCHEMA.names.index("bits_per_weight")
_FULL_WIDTH = 16.0


class BestFixedGamma:
    """Plays one constant for each compression, which it reads off the observation's bits per weight."""

    charges_decision = False

    def __init__(self, gammas: Mapping[str, int]) -> None:
        if not gammas:
            raise ConfigError("Expected a gamma for at least one compression, got none.")
        known = list(BITS_PER_WEIGHT)
        for compression, gamma in gammas.items():
            if compression not in BITS_PER_WEIGHT:
                raise ConfigError(
                    f"Expected a compression of {known}, got {compression!r}.{nearest(compression, known)}"
                )
            if not 0 <= gamma <= GAMMA_MAX:
                raise ConfigError(f"Expected gamma of {compression} from 0 to {GAMMA_MAX}, got {gamma}.")
        self.name = "agent best-fixed"
        self.gammas = dict(gammas)
        self._bits = np.array([BITS_PER_WEIGHT[c] / _FULL_WIDTH for c in gammas], np.float32)
        self._lookup = np.array(list(gammas.values()), np.int64)

    @classmethod
    def tune(cls, train: TraceSet, cost: CostTable) -> "BestFixedGamma":
        """Chooses each compression's gamma by total tokens over total seconds on the train prompts."""
        return cls(tune_fixed(train, cost).best())

    def reset(self) -> None:
        """Nothing to forget."""

    def learn(self, outcome: StepOutcome) -> None:
        """Ignored."""

    def act(self, observation: FloatArray) -> int:
        """Returns the constant of the compression nearest in bits per weight."""
        return int(self.act_batch(observation[np.newaxis])[0])

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the constant of each row's compression."""
        distance = np.abs(observations[:, _FIELD, np.newaxis] - self._bits)
        chosen: IntArray = self._lookup[distance.argmin(axis=1)]
        return chosen
