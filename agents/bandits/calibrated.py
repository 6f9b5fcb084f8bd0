# SPDX-License-Identifier: Apache-2.0
"""Throughput-optimal stopping from a model of acceptance that is calibrated online.

A logistic regression with an offset for each depth maps the draft's confidence to a chance of acceptance; it is
refitted regularly on tested tokens.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from speckv.agents.bandits.base import Bandit, Float64
from speckv.agents.building import COUNT, FROM_ZERO, require_above_zero, require_ranges
from speckv.agents.rules.base import CONFIDENCE
from speckv.agents.self_timed import SelfTimed, self_timed
from speckv.agents.survival.controllers import logistic, summed_more_s, worth_more
from speckv.cost.times import StepTimes
from speckv.errors import ConfigError
from speckv.observation import drafted_so_far
from speckv.types import GAMMA_MAX, BoolArray, FloatArray, IntArray, StepOutcome

if TYPE_CHECKING:
    from speckv.agents.registry import TrainingData

_CLAMP = 40.0
_EDGE = 1e-9
FIRST_MEAN_LOGIT = 2.0
"""Of a draft that is 0.88 sure."""
_MAX_MOVE = 2.0
"""Far from the optimum a whole Newton step may overshoot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedSettings:
    """Hyper-parameters; those of the regression are vLLM's.

    Attributes:
        offset: First offset at every depth.
        ridge: Penalty of a refit on the distance from the present weights.
        damping: A refit on n tokens goes n / (n + damping) of the way.
        memory: Number of the newest tested tokens that a refit uses.
        decay: Share of a request's mean logit that survives a drafted token.
        price_scale: Multiplies the required worth of a token; below 1 because later signals may still stop the draft.
    """

    gamma_max: int
    slope: float
    offset: float
    refit_every: int
    ridge: float
    damping: float
    memory: int
    decay: float
    price_scale: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        require_ranges(self, gamma_max=(1, GAMMA_MAX), refit_every=COUNT, memory=COUNT)
        require_ranges(self, slope=FROM_ZERO, damping=FROM_ZERO)
        require_above_zero(self, "ridge", "price_scale")
        if not 0 < self.decay < 1:
            raise ConfigError(f"Expected agent.decay in (0, 1), got {self.decay}.")


def logit(probabilities: NDArray[np.floating]) -> Float64:
    """log(p / (1 - p)), within 40 of zero.

    >>> logit(np.array([0.5, 1.0])).round(3).tolist()
    [0.0, 20.723]
    """
    p = np.clip(np.asarray(probabilities, np.float64), _EDGE, 1.0 - _EDGE)
    clipped: Float64 = np.clip(np.log(p) - np.log1p(-p), -_CLAMP, _CLAMP)
    return clipped


def refit(
    weights: Float64, logits: Float64, depths: IntArray, accepted: BoolArray, ridge: float, damping: float
) -> Float64:
    """One damped Newton step of a logistic regression towards some tested tokens; the slope stays at least 0.

    Args:
        weights: Shape [1 + depths]; slope, then an offset for each depth.
        logits: Shape [n]; of the draft's confidence in each token.
        depths: Shape [n]; of each token in its draft, from 0.

    Source:
        vLLM's adaptive verification, as read in its code (Apache-2.0): Newton steps, ridge 1e-3, damping 50.
    """
    design = np.zeros((len(logits), len(weights)))
    design[:, 0] = logits
    design[np.arange(len(logits)), 1 + depths] = 1.0
    new = _newton(weights, design, accepted, ridge, damping)
    if new[0] < 0.0:
        # The slope stays at its bound, and the offsets alone follow the text.
        new = np.concatenate([[0.0], weights[1:]])
        new[1:] = _newton(weights[1:], design[:, 1:], accepted, ridge, damping)
    return new


def _newton(weights: Float64, design: Float64, accepted: BoolArray, ridge: float, damping: float) -> Float64:
    number = len(design)
    chance = logistic(design @ weights)
    gradient = design.T @ (accepted - chance)
    hessian = design.T @ (design * (chance * (1.0 - chance))[:, None]) + ridge * number * np.eye(len(weights))
    step = np.linalg.solve(hessian, gradient) * number / (number + damping)
    moved: Float64 = weights + np.clip(step, -_MAX_MOVE, _MAX_MOVE)
    return moved


def _rates(chances: Float64, seconds: Float64) -> Float64:
    rates: Float64 = np.append(1.0, 1.0 + np.cumsum(np.cumprod(chances))) / seconds[: len(chances) + 1]
    return rates


def make_self_timed(settings: CalibratedSettings, data: "TrainingData") -> SelfTimed:
    """A controller that learns acceptance and times while it decodes; the recordings give compressions and depth."""
    inner = CalibratedStopping(settings, data.times, data.seed)
    gamma_max = data.train.metadata.gamma_max
    return self_timed(inner, data.train.compressions, gamma_max=gamma_max, name="self-timed-online")


class CalibratedStopping(Bandit):
    """Drafts on while the draft's survival, times the next token's chance, is worth the time of one token more.

    With c_k = sigmoid(w logit(confidence_k) + b_k) the chance that the k-th token is accepted if those before it are,
    and c'_k the same at the request's mean logit, for tokens yet to come:

    - a second is worth lambda = max over g of (1 + c'_1 + c'_1 c'_2 + ...) / T(g); where that is at g = 0 at the mean
      logit of all requests, nothing is drafted, the steps before the first refit excepted;
    - after d tokens, continue while some k > 0 more are worth their time:
      c_1 ... c_d (c'_(d+1) + c'_(d+1) c'_(d+2) + ...) >= price_scale * lambda (T(d + k) - T(d)).

    Attributes:
        weights: Shape [compressions, 1 + gamma_max]; w, then b_1, b_2, ...
        mean_logit: Shape [compressions]; initial value of a request's mean logit.
        tested: Shape [compressions, memory, 3]; logit, depth and acceptance of the newest tested tokens, in a ring.

    Source:
        The model is that of vLLM's adaptive verification (0.32), the rule is DSpark's. Both draft to the end and choose
        how much of it to verify across a batch; here the choice is made while drafting.
    """

    kind = "calibrated_stopping"
    decides_at_large: ClassVar[bool] = True
    settings_class = CalibratedSettings
    learned = ("weights", "mean_logit", "tested", "num_tested", "num_steps")
    of_request = ("_last", "_compression", "_local", "_ahead", "_price", "_survival", "gamma_ahead")

    def __init__(self, settings: CalibratedSettings, times: StepTimes, seed: int) -> None:
        super().__init__("calibrated-stopping", (0, settings.gamma_max), times, seed=seed)
        self.settings = settings
        count, depth = len(times.compressions), settings.gamma_max
        self.weights: Float64 = np.tile([settings.slope, *[settings.offset] * depth], (count, 1))
        self.mean_logit: Float64 = np.full(count, FIRST_MEAN_LOGIT)
        self.tested: Float64 = np.zeros((count, settings.memory, 3))
        self.num_tested, self.num_steps = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._scaled_s = summed_more_s(times, depth) * settings.price_scale
        self._compression = 0
        self._local: float | None = None
        self._ahead: Float64 = np.zeros(depth)
        self._price, self.gamma_ahead = 0.0, 0
        self._survival = [1.0]

    def reset(self) -> None:
        """Forgets the request; learned state stays."""
        super().reset()
        self._local = None

    def follow(self, times: StepTimes) -> None:
        """Takes times of the same compressions that may change; `times_changed` is called when they have."""
        self.times = times
        for row in range(len(times.compressions)):
            self.times_changed(row)

    def times_changed(self, row: int) -> None:
        """Computes what depends on the times of one compression."""
        step_s = self.times.verify_s[row] + np.arange(self.times.verify_s.shape[1]) * self.times.draft_s[row]
        more = step_s[1 : self.settings.gamma_max + 1] - step_s[0]
        self._scaled_s[row] = more * self.settings.price_scale

    def tokens_at_large(self, row: int) -> Float64:
        """Shape [gamma_max + 1]; mean tokens of a step that drafts each number of tokens."""
        weights = self.weights[row]
        survival = np.cumprod(logistic(weights[0] * self.mean_logit[row] + weights[1:]))
        return np.concatenate([[1.0], 1.0 + np.cumsum(survival)])

    def choose(self, compression: int, observation: FloatArray) -> int:
        """Returns 1 to draft and 0 where no draft is expected to pay.

        The mean logit of all requests decides, because plain decoding gives no signals of a request's draft.
        """
        self._compression = compression
        at_large, seconds = self.mean_logit[compression], self.times.step_s(observation[np.newaxis])[0]
        self._ahead = self._chances(at_large if self._local is None else self._local)
        rates = _rates(self._ahead, seconds)
        self._price, self.gamma_ahead = float(rates.max()), int(rates.argmax())
        self._survival = [1.0]
        learning = self.num_steps[compression] < self.settings.refit_every
        return int(learning or _rates(self._chances(at_large), seconds).argmax() > 0)

    def _chances(self, mean_logit: float) -> Float64:
        weights = self.weights[self._compression]
        return logistic(weights[0] * mean_logit + weights[1:])

    def go_on(self, observation: FloatArray) -> bool:
        """Returns whether to draft another token; called behind every drafted token in turn."""
        which, most = self._compression, self.settings.gamma_max
        depth = min(max(int(drafted_so_far(observation)), 1), most)
        if depth == most:
            return False
        weights = self.weights[which]
        chance = logistic(weights[0] * logit(observation[CONFIDENCE : CONFIDENCE + 1]) + weights[depth])
        del self._survival[depth:]
        self._survival.append(self._survival[-1] * float(chance[0]))
        next_one = np.array([self._survival[-1] * self._ahead[depth]])
        expected = np.asarray(np.cumprod(self._ahead)[np.newaxis], np.float64)
        return bool(
            worth_more(next_one, expected, np.array([depth]), self._price * self._scaled_s[which : which + 1])[0]
        )

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """As `go_on` for each row, all of the request that was decided on last."""
        return np.array([self.go_on(row) for row in observations], np.bool_)

    def update(self, compression: int, arm: int, observation: FloatArray, outcome: StepOutcome) -> None:
        """Stores the tested tokens; refits every `refit_every` steps."""
        del arm, observation
        settings = self.settings
        for depth, value in enumerate(logit(outcome.draft_signals[: outcome.num_tested, 1]).tolist()):
            before = self.mean_logit[compression] if self._local is None else self._local
            self._local = settings.decay * before + (1 - settings.decay) * value
            self.mean_logit[compression] += (value - self.mean_logit[compression]) / settings.memory
            slot = self.num_tested[compression] % settings.memory
            self.tested[compression, slot] = value, depth, depth < outcome.num_accepted
            self.num_tested[compression] += 1
        self.num_steps[compression] += 1
        if self.num_steps[compression] % settings.refit_every == 0 and self.num_tested[compression]:
            self._refit(compression)

    def _refit(self, compression: int) -> None:
        settings = self.settings
        logits, depths, accepted = self.tested[compression, : self.num_tested[compression]].T
        self.weights[compression] = refit(
            self.weights[compression],
            logits,
            depths.astype(np.int64),
            accepted > 0,
            settings.ridge,
            settings.damping,
        )
