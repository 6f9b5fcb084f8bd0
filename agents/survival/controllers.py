# SPDX-License-Identifier: Apache-2.0
"""Controllers that maximise expected tokens a second, by gamma before a step or by stopping inside it.

With S_d the probability that a draft survives to depth d, and T(g) the seconds of a step that drafts g tokens:

- before a step, gamma = argmax (1 + S_1 + ... + S_g) / T(g); lambda is the maximum, in tokens a second;
- after each drafted token, continue while some k > 0 more tokens are worth the time of drafting and verifying them:
  S_(d+1) + ... + S_(d+k) >= lambda (T(d+k) - T(d)). The next token's survival is predicted from the signals of the
  draft; that of later ones falls as predicted before the step.

This one-step view misses three effects, which are calibrated for each compression by replay of the train prompts: only
drafting gives signals of the draft (`floor`); later signals may still stop a draft, which makes continuing worth more
(`price_scale`); and where drafting gains nothing overall, it is never done (`NEVER`).

Source:
    The rule that vLLM's adaptive verification and DSpark apply to a calibrated model of draft confidence, with
    survival learned from recordings; optimal stopping for its one-step form (Chow and Robbins 1961).
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from speckv.agents.building import COUNT, FROM_ZERO, require_above_zero, require_layers, require_ranges
from speckv.agents.rules.base import Rule, StoppingRule
from speckv.cost.times import NEVER, StepTimes
from speckv.errors import CheckpointError
from speckv.observation import SCHEMA, drafted_so_far
from speckv.runtime.network import Network
from speckv.runtime.state import ControllerState
from speckv.types import BoolArray, FloatArray, IntArray

Float64 = NDArray[np.float64]
_BITS = SCHEMA.index("bits_per_weight")
LEAST_SURVIVAL = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """Hyper-parameters of `fit_probabilities`; the learning rate of AdamW falls to zero along a cosine."""

    hidden: tuple[int, ...]
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        require_layers(self)
        require_ranges(self, epochs=COUNT, batch_size=COUNT, weight_decay=FROM_ZERO)
        require_above_zero(self, "learning_rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivalSettings(FitSettings):
    """Hyper-parameters; each of the `rounds` of fits but the first adds the states that the last controller meets."""

    rounds: int

    def __post_init__(self) -> None:
        """Checks ranges."""
        FitSettings.__post_init__(self)  # a plain super() breaks in dataclasses with slots
        require_ranges(self, rounds=COUNT)


def logistic(scores: NDArray[np.floating]) -> Float64:
    """1 / (1 + exp(-score)), without overflow.

    >>> logistic(np.array([-800.0, 0.0])).tolist()
    [0.0, 0.5]
    """
    return np.exp(-np.logaddexp(0.0, -np.asarray(scores, np.float64)))


class Outlook(NamedTuple):
    """Predictions before one step.

    Attributes:
        survival: Shape [gamma_max]; chance that a draft survives to each depth from 1, never rising.
        rates: Shape [gamma_max + 1]; expected tokens a second, for each gamma from 0.
    """

    which: int
    survival: Float64
    rates: Float64


class SingleOutlook:
    """Computes outlooks one at a time. Not for use from two threads at once."""

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
        """Predicts for an observation of shape [features]."""
        which = self.which(observation)
        np.negative(self._before.one(observation), out=self._scores)
        # The logistic function, as for a batch: exp(-log(exp(0) + exp(-score))).
        chances = np.exp(-np.logaddexp(0.0, self._scores))
        survival: Float64 = np.minimum.accumulate(chances)
        tokens = self._tokens
        np.add(np.cumsum(survival), 1.0, out=tokens[1:])
        rates: Float64 = tokens / self._times.one_step_s(which, observation)[: len(tokens)]
        return Outlook(which, survival, rates)


class SurvivalGamma(Rule):
    """Chooses the gamma of most expected tokens a second before each step.

    Args:
        floor: Shape [compressions]; least gamma, 0 or 1, or NEVER; 0 everywhere by default.
        mean_survival: Shape [gamma_max]; mean chance that a draft survives to each depth, for learned times.
    """

    kind = "survival"
    decides_at_large: ClassVar[bool] = False
    settings_class = SurvivalSettings

    def __init__(
        self,
        before: Network,
        times: StepTimes,
        floor: IntArray | None = None,
        mean_survival: Float64 | None = None,
        *,
        name: str = "survival",
    ) -> None:
        super().__init__(name)
        self.before, self.mean_survival = before, mean_survival
        self.floor = np.zeros(len(times.compressions), np.int64) if floor is None else floor
        self.follow(times)

    def follow(self, times: StepTimes) -> None:
        """Takes times of the same compressions, which may change."""
        self.times, self.single = times, SingleOutlook(self.before, times)

    def set_floor(self, row: int, floor: int) -> None:
        """Sets the floor of one compression."""
        self.floor[row] = floor

    def tokens_at_large(self, row: int) -> Float64:  # noqa: ARG002 - acceptance hardly depends on the compression
        """Shape [gamma_max + 1]; mean tokens of a step that drafts each number of tokens."""
        if self.mean_survival is None:
            raise CheckpointError("Expected a controller that stores its mean survival, got an older one. Train again.")
        return np.concatenate([[1.0], 1.0 + np.cumsum(self.mean_survival)])

    def state(self) -> ControllerState:
        """Returns network, times and floors."""
        arrays = {"floor": self.floor, **_stored_mean(self.mean_survival)}
        return ControllerState.of(networks={"before": self.before}, times=self.times, arrays=arrays)

    @classmethod
    def from_state(cls, state: ControllerState) -> "SurvivalGamma":
        """Makes the stored controller."""
        return cls(state.network("before"), state.times(), state.array("floor"), state.arrays.get("mean_survival"))

    def with_times(self, times: StepTimes) -> "SurvivalGamma":
        """Returns the controller for another machine, where it may draft at every compression."""
        return SurvivalGamma(self.before, times, _moved_floor(self, times), self.mean_survival)

    def survival(self, observations: FloatArray) -> Float64:
        """Shape [N, gamma_max]; chance that a draft survives to each depth from 1, never rising."""
        never_rising: Float64 = np.minimum.accumulate(logistic(self.before.batch(observations)), axis=1)
        return never_rising

    def rates(self, observations: FloatArray, survival: Float64) -> Float64:
        """Shape [N, gamma_max + 1]; expected tokens a second of a step, for each gamma from 0."""
        tokens = np.concatenate([np.ones((len(survival), 1)), 1.0 + np.cumsum(survival, axis=1)], axis=1)
        return tokens / self.times.step_s(observations)[:, : tokens.shape[1]]

    def act(self, observation: FloatArray) -> int:
        """Returns gamma for the only request."""
        floor = self.floor[self.single.which(observation)]
        return 0 if floor == NEVER else max(int(self.single.of(observation).rates.argmax()), int(floor))

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the gamma of most expected tokens a second."""
        chosen: IntArray = self.rates(observations, self.survival(observations)).argmax(axis=1)
        floor = self.floor[self.times.which(observations)]
        return np.where(floor == NEVER, 0, np.maximum(chosen, floor))

    def never_drafts(self, compression: str) -> bool:
        """Whether every decision is 0 at a compression."""
        return compression in self.times.compressions and bool(
            self.floor[self.times.compressions.index(compression)] == NEVER
        )


class SurvivalStopping(StoppingRule):
    """Drafts while the next token is worth its time; plain decoding where no draft length pays.

    Args:
        inside: Features of `STOPPING_SCHEMA` -> log-odds that the next token is accepted, with all before it.
        floor: Shape [compressions]; 1 to always draft a first token, NEVER to draft none, 0 by default.
        price_scale: Shape [compressions]; multiplies the required worth of a token; 1 by default.
        mean_survival: As of `SurvivalGamma`.
    """

    kind = "survival_stopping"
    decides_at_large: ClassVar[bool] = False
    settings_class = SurvivalSettings

    def __init__(
        self,
        before: Network,
        inside: Network,
        times: StepTimes,
        floor: IntArray | None = None,
        price_scale: Float64 | None = None,
        mean_survival: Float64 | None = None,
        *,
        name: str = "survival-stopping",
    ) -> None:
        super().__init__(name, len(before.biases[-1]))
        self.before = SurvivalGamma(before, times, floor, mean_survival)
        self.inside, self.times = inside, times
        self.price_scale = np.ones(len(times.compressions)) if price_scale is None else price_scale
        self._scaled_s = summed_more_s(times, self.gamma_max) * self.price_scale[:, None]
        self._value = np.zeros(1)
        self._which = np.zeros(1, np.int64)
        self._never = np.zeros(1, np.bool_)
        self._expected = np.ones((1, self.gamma_max))
        self._row: tuple[list[float], list[float]] = ([], [])
        self.gamma_ahead = 0
        """The gamma of most expected tokens a second before the step, for use where signals of drafts are missing."""

    def state(self) -> ControllerState:
        """Returns networks, times, floors and price scales."""
        return ControllerState.of(
            networks={"before": self.before.before, "inside": self.inside},
            times=self.times,
            arrays={
                "floor": self.before.floor,
                "price_scale": self.price_scale,
                **_stored_mean(self.before.mean_survival),
            },
        )

    @classmethod
    def from_state(cls, state: ControllerState) -> "SurvivalStopping":
        """Makes the stored controller."""
        return cls(
            state.network("before"),
            state.network("inside"),
            state.times(),
            state.array("floor"),
            state.array("price_scale"),
            state.arrays.get("mean_survival"),
        )

    def follow(self, times: StepTimes) -> None:
        """Takes times of the same compressions that may change; `times_changed` is called when they have."""
        self.times = times
        self.before.follow(times)
        self._scaled_s = summed_more_s(times, self.gamma_max) * self.price_scale[:, None]

    def times_changed(self, row: int) -> None:
        """Computes what depends on the times of one compression."""
        step_s = self.times.verify_s[row]
        self._scaled_s[row] = (step_s[1 : self.gamma_max + 1] - step_s[0]) * self.price_scale[row]

    def with_times(self, times: StepTimes) -> "SurvivalStopping":
        """Returns the controller for another machine, where it may draft at every compression."""
        scale = self.price_scale[self.times.rows_of(times.compressions)]
        floor = _moved_floor(self.before, times)
        return SurvivalStopping(self.before.before, self.inside, times, floor, scale, self.before.mean_survival)

    def set_floor(self, row: int, floor: int) -> None:
        """Sets the floor of one compression."""
        self.before.set_floor(row, floor)

    def tokens_at_large(self, row: int) -> Float64:
        """Shape [gamma_max + 1]; mean tokens of a step that drafts each number of tokens."""
        return self.before.tokens_at_large(row)

    def save_request(self) -> object:
        """Returns what belongs to the current request: its outlook."""
        return self._row, self.gamma_ahead

    def load_request(self, request: object) -> None:
        """Continues a request that `save_request` returned."""
        self._row, self.gamma_ahead = cast(tuple[tuple[list[float], list[float]], int], request)

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the most tokens to draft, or 0, and keeps lambda of each request."""
        self._expected = self.before.survival(observations)
        rates = self.before.rates(observations, self._expected)
        self._value = rates.max(axis=1)
        self._which = self.times.which(observations)
        floor = self.before.floor[self._which]
        self._never = floor == NEVER
        return np.where(((rates.argmax(axis=1) > 0) | (floor > 0)) & ~self._never, self.gamma_max, 0)

    def act(self, observation: FloatArray) -> int:
        """Returns the most tokens to draft in the only request."""
        floor = self.before.floor[self.before.single.which(observation)]
        if floor == NEVER:
            self._row, self.gamma_ahead = ([], []), 0
            return 0
        which, survival, rates = self.before.single.of(observation)
        self.gamma_ahead = best = int(rates.argmax())
        self._row = survival.tolist(), (rates[best] * self._scaled_s[which]).tolist()
        return self.gamma_max if best or floor else 0

    def never_drafts(self, compression: str) -> bool:
        """Whether every decision is 0 at a compression."""
        return self.before.never_drafts(compression)

    def go_on(self, observation: FloatArray) -> bool:
        """As `go_on_batch` for the only request, with the same numbers."""
        (expected, price), chance = self._row, float(logistic(self.inside.one(observation)[:1])[0])
        depth = int(drafted_so_far(observation))
        if depth >= len(expected):
            return False
        paid = price[depth - 1] if depth else 0.0
        next_one, ahead = max(expected[depth], LEAST_SURVIVAL), 0.0
        for survival, costs in zip(expected[depth:], price[depth:], strict=True):
            ahead += survival
            if survival > 0.0 and chance * ahead / next_one - (costs - paid) >= 0.0:
                return True
        return False

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """Continues where more tokens are worth their time; `act_batch` must have decided on the same steps."""
        assert len(observations) == len(self._value)
        chance = logistic(self.inside.batch(observations)[:, 0])
        price = self._value[:, None] * self._scaled_s[self._which]
        return worth_more(chance, self._expected, drafted_so_far(observations), price) & ~self._never


def _stored_mean(mean_survival: Float64 | None) -> dict[str, Float64]:
    return {} if mean_survival is None else {"mean_survival": mean_survival}


def _moved_floor(controller: SurvivalGamma, times: StepTimes) -> IntArray:
    floor: IntArray = np.maximum(controller.floor[controller.times.rows_of(times.compressions)], 0)
    return floor


def summed_more_s(times: StepTimes, gamma_max: int) -> Float64:
    """Shape [compressions, gamma_max]; column k - 1: what drafting and verifying k tokens adds to plain decoding."""
    more_s = np.diff(times.verify_s, axis=1) + times.draft_s[:, None] + times.controller_s
    summed: Float64 = np.cumsum(more_s[:, :gamma_max], axis=1)
    return summed


def worth_more(chance: Float64, expected: Float64, depth: IntArray, price: Float64) -> BoolArray:
    """Whether drafting some number of tokens more pays.

    Args:
        chance: Shape [N]; that the next token survives, with all before it.
        expected: Shape [N, gamma_max]; survival to each depth from 1 as expected before; only its fall matters.
        depth: Shape [N]; tokens drafted so far; the result is False at gamma_max.
        price: Shape [N, gamma_max]; tokens required of a draft of each length from 1.

    >>> half, price = np.full((1, 2), 0.5), np.array([[0.6, 0.7]])
    >>> [worth_more(np.array([c]), half, np.array([0]), price).tolist() for c in (0.3, 0.4)]
    [[False], [True]]
    """
    rows, last = np.arange(len(depth)), expected.shape[1] - 1
    place = np.minimum(depth, last)[:, None]
    ahead = np.where(np.arange(last + 1) >= place, expected, 0.0)
    next_one = np.maximum(expected[rows, place[:, 0]], LEAST_SURVIVAL)
    tokens = chance[:, None] * np.cumsum(ahead, axis=1) / next_one[:, None]
    paid = np.where(depth > 0, price[rows, np.minimum(depth, last + 1) - 1], 0.0)
    gain = np.where(ahead > 0.0, tokens - (price - paid[:, None]), -np.inf)
    worth: BoolArray = (gain.max(axis=1) >= 0.0) & (depth <= last)
    return worth
