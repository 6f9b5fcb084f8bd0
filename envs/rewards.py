# SPDX-License-Identifier: Apache-2.0
"""Rewards of a decode step.

The text is fixed, so a controller's score is total time: the sum of tokens over the sum of seconds. Each reward turns
that into one number a step:

- `throughput`: for discount 0. A sum of ratios is not a ratio of sums, so with a longer horizon its optimum drifts.
- `time`: the exact objective when undiscounted, because an episode is a fixed text.
- `lambda_throughput`: Dinkelbach's parametric form of the ratio; exact at the fixed point, where lambda is the
  throughput being achieved. Training moves lambda there.
- `tokens_minus_cost`: right for discount 0 and a token cost of lambda times the draft's seconds ("auto"). Undiscounted,
  an episode's tokens are a constant and its optimum is never to draft.
- `tokens`: an ablation that drives gamma to its maximum, whatever the draft costs.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speckv.cost import CompiledCost
from speckv.errors import ConfigError, nearest
from speckv.importing import import_named, is_import_path
from speckv.replay import ReplayStep
from speckv.types import IntArray

Rewards = NDArray[np.float64]
Lambda = float | Mapping[str, float] | None
RewardOptions = Mapping[str, float | str | Mapping[str, float]]


def throughput(num_emitted: ArrayLike, seconds: ArrayLike, autoregressive_s: ArrayLike) -> Rewards:
    """The step's tokens a second, in units of plain decoding, which emits a token in `autoregressive_s` seconds.

    >>> throughput(num_emitted=3, seconds=0.5, autoregressive_s=0.25).item()
    1.5
    """
    return np.asarray(np.multiply(num_emitted, autoregressive_s) / np.asarray(seconds), np.float64)


def time(seconds: ArrayLike, autoregressive_s: ArrayLike) -> Rewards:
    """The step's time, negated, in units of plain decoding's time for one token.

    `autoregressive_s` must be the same at every step of an episode, or the sum is no longer the episode's time.

    >>> time(seconds=0.5, autoregressive_s=0.25).item()
    -2.0
    """
    return np.asarray(-np.divide(seconds, autoregressive_s), np.float64)


def lambda_throughput(num_emitted: ArrayLike, seconds: ArrayLike, tokens_per_second: ArrayLike) -> Rewards:
    """The step's tokens, less those that would have been emitted in its time at the throughput lambda.

    Source:
        Dinkelbach 1967, "On nonlinear fractional programming", Management Science 13(7).

    >>> lambda_throughput(num_emitted=3, seconds=0.25, tokens_per_second=8.0).item()
    1.0
    """
    return np.asarray(np.subtract(num_emitted, np.multiply(tokens_per_second, seconds)), np.float64)


def tokens_minus_cost(num_emitted: ArrayLike, num_drafted: ArrayLike, token_cost: ArrayLike) -> Rewards:
    """The step's tokens, less a price for each drafted one, in emitted tokens.

    >>> tokens_minus_cost(num_emitted=3, num_drafted=4, token_cost=0.25).item()
    2.0
    """
    return np.asarray(np.subtract(num_emitted, np.multiply(token_cost, num_drafted)), np.float64)


class Reward:
    """Computes the reward of one decode step of each environment."""

    def __init__(self, cost: CompiledCost) -> None:
        self._cost = cost

    def __call__(self, step: ReplayStep, comp_index: IntArray) -> Rewards:
        """Returns shape [N], given the step and the compression index of each row."""
        raise NotImplementedError

    def set_lambda(self, values: Mapping[str, float]) -> None:
        """Sets the throughput, in tokens a second, of some compressions; a ConfigError where the reward has none."""
        raise ConfigError(f"Expected a reward with a lambda, such as lambda_throughput, to take {dict(values)}.")


RewardFunction = Callable[[ReplayStep, Rewards], ArrayLike]
"""A reward of one's own.

It gets what a decode step of each environment did (`num_drafted`, `num_accepted`, `num_emitted`, `seconds`, `context`:
arrays of shape [N]) and `plain_s`, shape [N]: the seconds in which plain decoding emits one token there. It returns
shape [N]. In `SpecKV/DraftStopping-v0` it is called once an action: one that drafts emits nothing.
"""


class _Own(Reward):
    def __init__(self, cost: CompiledCost, function: RewardFunction) -> None:
        super().__init__(cost)
        self._function, self._name = function, reward_name(function)

    def __call__(self, step: ReplayStep, comp_index: IntArray) -> Rewards:
        plain_s = self._cost.autoregressive_s(comp_index, step.context)
        rewards = np.array(self._function(step, plain_s), np.float64)
        if rewards.shape != comp_index.shape or not np.isfinite(rewards).all():
            raise ConfigError(
                f"Expected reward {self._name} to return {len(comp_index)} finite numbers, got "
                f"{f'shape {rewards.shape}' if rewards.shape != comp_index.shape else 'NaN or infinity'}."
            )
        return rewards


class _Throughput(Reward):
    def __call__(self, step: ReplayStep, comp_index: IntArray) -> Rewards:
        plain_s = self._cost.autoregressive_s(comp_index, step.context)
        return throughput(step.num_emitted, step.seconds, plain_s)


class _Time(Reward):
    def __call__(self, step: ReplayStep, comp_index: IntArray) -> Rewards:
        return time(step.seconds, self._cost.reference_autoregressive_s[comp_index])


class _Tokens(Reward):
    def __call__(self, step: ReplayStep, comp_index: IntArray) -> Rewards:  # noqa: ARG002
        return step.num_emitted.astype(np.float64)


class _WithLambda(Reward):
    """Lambda starts at plain decoding's throughput; the caller moves it, or with `decay` it follows rewarded steps."""

    def __init__(self, cost: CompiledCost, rate: Lambda = None, decay: float | None = None) -> None:
        if decay is not None and not 0.0 < decay < 1.0:
            raise ConfigError(f"Expected a decay above 0 and below 1, or none to keep lambda as set, got {decay}.")
        super().__init__(cost)
        self._decay = decay
        self.rates = 1.0 / cost.reference_autoregressive_s
        # Lambda counts as one second's worth of steps, so that the first ones move it a little and do not replace it.
        self._seconds = np.ones(len(self.rates))
        self._tokens = self.rates * self._seconds
        if rate is not None:
            self.set_lambda(rate if isinstance(rate, Mapping) else dict.fromkeys(cost.compressions, rate))

    def set_lambda(self, values: Mapping[str, float]) -> None:
        names = self._cost.compressions
        for name, value in values.items():
            if name not in names or not np.isfinite(value) or value < 0:
                raise ConfigError(
                    f"Expected tokens a second, 0 or more, for compressions among {list(names)}, got {name}: {value}."
                )
            self.rates[names.index(name)] = value
        self._tokens = self.rates * self._seconds

    def _follow(self, step: ReplayStep, comp_index: IntArray) -> None:
        if self._decay is None:
            return
        count = len(self.rates)
        for total, amounts in ((self._tokens, step.num_emitted), (self._seconds, step.seconds)):
            total *= self._decay
            total += np.bincount(comp_index, amounts, count)
        self.rates = self._tokens / self._seconds


class _LambdaThroughput(_WithLambda):
    def __call__(self, step: ReplayStep, comp_index: IntArray) -> Rewards:
        rewards = lambda_throughput(step.num_emitted, step.seconds, self.rates[comp_index])
        self._follow(step, comp_index)
        return rewards


class _TokensMinusCost(_WithLambda):
    def __init__(
        self, cost: CompiledCost, token_cost: float | str = "auto", rate: Lambda = None, decay: float | None = None
    ) -> None:
        super().__init__(cost, rate, decay)
        is_number = isinstance(token_cost, int | float) and not isinstance(token_cost, bool)
        if token_cost != "auto" and not (is_number and 0 <= float(token_cost) < np.inf):
            raise ConfigError(f"Expected a token cost of 0 or more emitted tokens, or 'auto', got {token_cost!r}.")
        self._price = None if token_cost == "auto" else float(token_cost)

    def __call__(self, step: ReplayStep, comp_index: IntArray) -> Rewards:
        prices = (
            self.rates * self._cost.reference_draft_s if self._price is None else np.full(len(self.rates), self._price)
        )
        rewards = tokens_minus_cost(step.num_emitted, step.num_drafted, prices[comp_index])
        self._follow(step, comp_index)
        return rewards


REWARDS: dict[str, Callable[..., Reward]] = {
    "throughput": _Throughput,
    "time": _Time,
    "lambda_throughput": _LambdaThroughput,
    "tokens_minus_cost": _TokensMinusCost,
    "tokens": _Tokens,
}
"""Name -> factory. Options: `rate` (lambda in tokens a second, one number or one a compression) and `decay` for
`lambda_throughput`; these and `token_cost` (a number or "auto") for `tokens_minus_cost`; none for the others."""


def reward_name(reward: str | RewardFunction) -> str:
    """Name of a reward; "module:function" for one's own.

    >>> reward_name("time"), reward_name(time)
    ('time', 'speckv.envs.rewards:time')
    """
    if isinstance(reward, str):
        return reward
    return f"{getattr(reward, '__module__', '?')}:{getattr(reward, '__qualname__', type(reward).__name__)}"


def make_reward(reward: str | RewardFunction, cost: CompiledCost, options: RewardOptions | None) -> Reward:
    """Builds a reward of `REWARDS` or one of the user's own; a ConfigError if the name or an option is unknown."""
    if isinstance(reward, str) and is_import_path(reward):
        reward = import_named(reward)
    if not isinstance(reward, str):
        if not callable(reward) or options:
            raise ConfigError(f"Expected a function without reward_options, got {reward!r} with {dict(options or {})}.")
        return _Own(cost, reward)
    if reward not in REWARDS:
        raise ConfigError(
            f"Expected a reward among {sorted(REWARDS)}, a function or its module:name, got {reward!r}."
            + nearest(reward, list(REWARDS))
        )
    try:
        return REWARDS[reward](cost, **(options or {}))
    except TypeError as error:
        raise ConfigError(f"Expected only options of the reward {reward!r}, got {dict(options or {})}.") from error
