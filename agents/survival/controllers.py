# SPDX-License-Identifier: Apache-2.0
"""The gamma of most expected tokens a second, and the token behind which drafting on no longer pays.

With S_d the probability that a draft survives to depth d, and T(g) the seconds of a step that drafts g tokens:

- before a step, gamma = argmax (1 + S_1 + ... + S_g) / T(g), and lambda, the value of that quotient, is what a second
  is worth here: the request's own rate, so a hard stretch is not measured by the pace of an easy one;
- behind each drafted token, with what the draft said so far, go on while S_(d+1) tokens are worth the time that
  drafting and verifying one more takes: S_(d+1) >= lambda (T(d+1) - T(d)). The user has no threshold to tune.

Two things escape that look one token ahead, and are settled by exact replay of the train prompts, for each compression:
plain decoding shows nothing of the draft, so it is hard to leave again and drafting one token is worth more than that
token (`floor`); and what one more token leads on to scales its price (`price_scale`).

Source:
    The rule that vLLM's adaptive verification and DSpark apply to a calibrated model of draft confidence, with
    survival learned from recordings; optimal stopping for its one-step form (Chow and Robbins 1961).
"""

import numpy as np
from numpy.typing import NDArray

from agents.rules.base import Rule, StoppingRule
from speckv.cost.times import StepTimes
from speckv.observation import STOPPING_SCHEMA
from speckv.runtime.network import Network
from speckv.types import BoolArray, FloatArray, IntArray

Float64 = NDArray[np.float64]
_DEPTH = STOPPING_SCHEMA.index("depth")
DEPTH_SCALE = 16.0


def logistic(scores: NDArray[np.floating]) -> Float64:
    """1 / (1 + exp(-score)), without overflow.

    >>> logistic(np.array([-800.0, 0.0])).tolist()
    [0.0, 0.5]
    """
    return np.exp(-np.logaddexp(0.0, -np.asarray(scores, np.float64)))


class SurvivalGamma(Rule):
    """Chooses the gamma of most expected tokens a second before each step.

    Args:
        before: Features of `SCHEMA` -> log-odds of surviving to each depth from 1.
        times: What steps take.
        floor: Shape [compressions]; least gamma, 0 or 1; 0 everywhere by default.
        name: Shown in tables.
    """

    def __init__(
        self, before: Network, times: StepTimes, floor: IntArray | None = None, *, name: str = "survival"
    ) -> None:
        super().__init__(name)
        self.before, self.times = before, times
        self.floor = np.zeros(len(times.compressions), np.int64) if floor is None else floor

    def rates(self, observations: FloatArray) -> Float64:
        """Shape [N, gamma_max + 1]; expected tokens a second of a step, for each gamma from 0."""
        survival = np.minimum.accumulate(logistic(self.before.batch(observations)), axis=1)
        tokens = np.concatenate([np.ones((len(survival), 1)), 1.0 + np.cumsum(survival, axis=1)], axis=1)
        return tokens / self.times.step_s(observations)[:, : tokens.shape[1]]

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the gamma of most expected tokens a second."""
        chosen: IntArray = self.rates(observations).argmax(axis=1)
        return np.maximum(chosen, self.floor[self.times.which(observations)])


class SurvivalStopping(StoppingRule):
    """Drafts while the next token is worth its time; plain decoding where drafting pays at no length.

    Args:
        before: As for `SurvivalGamma`.
        inside: Features of `STOPPING_SCHEMA` -> log-odds that the next token is accepted, with all before it.
        times: What steps take.
        floor: Shape [compressions]; 1 where a first token is always drafted; 0 everywhere by default.
        price_scale: Shape [compressions]; multiplies what a token has to be worth; 1 everywhere by default.
        name: Shown in tables.
    """

    def __init__(
        self,
        before: Network,
        inside: Network,
        times: StepTimes,
        floor: IntArray | None = None,
        price_scale: Float64 | None = None,
        *,
        name: str = "survival-stopping",
    ) -> None:
        super().__init__(name, len(before.biases[-1]))
        self.before = SurvivalGamma(before, times, floor)
        self.inside, self.times = inside, times
        self.price_scale = np.ones(len(times.compressions)) if price_scale is None else price_scale
        more_s = np.diff(times.verify_s, axis=1) + times.draft_s[:, None] + times.controller_s
        self._more_s = more_s * self.price_scale[:, None]
        self._value = np.zeros(1)
        self._which = np.zeros(1, np.int64)

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the most tokens to draft, or 0, and notes what a second is worth in each request."""
        rates = self.before.rates(observations)
        self._value = rates.max(axis=1)
        self._which = self.times.which(observations)
        drafts = (rates.argmax(axis=1) > 0) | (self.before.floor[self._which] > 0)
        return np.where(drafts, self.gamma_max, 0)

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """Goes on where the next token is worth its time; `act_batch` has been asked about the same steps."""
        assert len(observations) == len(self._value)
        chance = logistic(self.inside.batch(observations)[:, 0])
        depth = np.rint(observations[:, _DEPTH] * DEPTH_SCALE).astype(np.int64)
        price = self._value * self._more_s[self._which, np.minimum(depth, self._more_s.shape[1] - 1)]
        worth: BoolArray = chance >= price
        return worth
