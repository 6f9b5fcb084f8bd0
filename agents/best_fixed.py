# SPDX-License-Identifier: Apache-2.0
"""The best constant gamma of each compression, tuned on train prompts: the baseline that a learner has to beat."""

from collections.abc import Mapping

from speckv.cost import CostTable
from speckv.errors import ConfigError
from speckv.evaluation.replays import tune_fixed
from speckv.runtime.constant import ConstantPerCompression
from speckv.traces import TraceSet
from speckv.types import GAMMA_MAX


class BestFixedGamma(ConstantPerCompression):
    """One constant for each compression, as many tokens as recordings know of."""

    def __init__(self, gammas: Mapping[str, int]) -> None:
        super().__init__(gammas, name="agent best-fixed")
        for compression, gamma in gammas.items():
            if gamma > GAMMA_MAX:
                raise ConfigError(f"Expected gamma of {compression} from 0 to {GAMMA_MAX}, got {gamma}.")

    @classmethod
    def tune(cls, train: TraceSet, cost: CostTable) -> "BestFixedGamma":
        """Chooses each compression's gamma by total tokens over total seconds on the train prompts."""
        return cls(tune_fixed(train, cost).best())
