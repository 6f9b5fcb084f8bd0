# SPDX-License-Identifier: Apache-2.0
"""What a survival model says before a step of one request: the batch's numbers, without the batch's detours."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from speckv.cost.times import StepTimes
from speckv.observation import SCHEMA
from speckv.runtime.network import Network
from speckv.types import FloatArray

Float64 = NDArray[np.float64]
_BITS = SCHEMA.index("bits_per_weight")


class Outlook(NamedTuple):
    """Before one step.

    Attributes:
        which: Row of the compression in the times.
        survival: Shape [gamma_max]; chance that a draft survives to each depth from 1, never rising.
        rates: Shape [gamma_max + 1]; expected tokens a second, for each gamma from 0.
    """

    which: int
    survival: Float64
    rates: Float64


class SingleOutlook:
    """Computes outlooks one at a time. Not for use from two threads at once.

    Args:
        before: Features of `SCHEMA` -> log-odds of surviving to each depth from 1.
        times: What steps take.
    """

    def __init__(self, before: Network, times: StepTimes) -> None:
        self._before, self._times = before, times
        self._which: dict[float, int] = {}
        depth = len(before.biases[-1])
        self._tokens = np.ones(depth + 1)
        self._scores = np.zeros(depth)

    def which(self, observation: FloatArray) -> int:
        """Row of an observation's compression in the times."""
        bits = float(observation[_BITS])
        found = self._which.get(bits)
        if found is None:
            found = self._which.setdefault(bits, int(self._times.which(observation[np.newaxis])[0]))
        return found

    def of(self, observation: FloatArray) -> Outlook:
        """Before a step.

        Args:
            observation: Shape [features].
        """
        which = self.which(observation)
        np.negative(self._before.one(observation), out=self._scores)
        # The logistic function, as for a batch: exp(-log(exp(0) + exp(-score))).
        chances = np.exp(-np.logaddexp(0.0, self._scores))
        survival: Float64 = np.minimum.accumulate(chances)
        tokens = self._tokens
        np.add(np.cumsum(survival), 1.0, out=tokens[1:])
        rates: Float64 = tokens / self._times.one_step_s(which, observation)[: len(tokens)]
        return Outlook(which, survival, rates)
