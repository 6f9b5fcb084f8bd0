# SPDX-License-Identifier: Apache-2.0
"""The environment of real models: the spaces of the replayed ones, with tokens and seconds of the machine at hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from speckv.cost import CostTable
from speckv.decoding import DecodeStep, Engine
from speckv.envs import rewards
from speckv.envs.core import STEP_INFO
from speckv.envs.draft_stopping import DRAFT
from speckv.errors import ConfigError, device_errors_explained
from speckv.observation import SCHEMA, STOPPING_SCHEMA, RequestMemory
from speckv.types import BITS_PER_WEIGHT, GAMMA_MAX, FloatArray

REWARDS = {
    "per_step": ("throughput", "lambda_throughput", "time", "tokens"),
    "per_token": ("lambda_throughput", "time"),
}
"""Rewards on offer, the default first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePrompt:
    """A prompt as token ids, with a name; the name and the sampling seed determine every draw."""

    prompt_id: str
    tokens: tuple[int, ...]


class LiveDecodingEnv(gym.Env[FloatArray, np.int64]):
    """Chooses the speculation length of a request that real models decode, with measured time in the reward.

    ## Description
    `SpecKV/GammaSelection-v0` (`decides="per_step"`) or `SpecKV/DraftStopping-v0` (`"per_token"`) on real models: an
    episode is a request, a step runs the models. The observations are computed by the same functions, so a policy
    trained in replay needs no change. Seconds come from the engine's clock and are not repeatable; tokens are, for
    greedy and Gumbel-coupled sampling.

    ## Action space, observation space
    Those of the replayed environment of the same granularity.

    ## Rewards
    `throughput`, `lambda_throughput`, `time` and `tokens`, as in replay; plain decoding's seconds and the first lambda
    are the cost table's at its reference context. Token by token, `throughput` and `tokens` are refused: the first does
    not add up over actions, the second rewards drafting without end.

    ## Starting state
    A prompt drawn uniformly with the environment's generator, its first token emitted by the prefill;
    `reset(options={"prompt": index})` picks one instead. A prompt whose output ends with that token is drawn again.

    ## Episode end
    1. Termination: the text ends with the target's end of text.
    2. Truncation: the token budget is used up.

    ## Info
    `reset` gives `prompt_id`. `step` gives `num_drafted`, `num_accepted`, `num_emitted` and `seconds` of the action,
    and `outcome`, a `StepOutcome`, where it verified.

    ## Version history
    * v0: first release.

    Args:
        cost: Cost ratio in the observation, plain decoding's seconds in the reward.
        compression: Of the target; a CostTableError if the table lacks it.
        reward: One of `REWARDS[decides]`; the first by default.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (declared so by Gymnasium)

    def __init__(
        self,
        *,
        engine: Engine,
        prompts: Sequence[LivePrompt],
        cost: CostTable,
        compression: str = "fp16",
        max_new_tokens: int = 128,
        decides: str = "per_step",
        gamma_max: int = GAMMA_MAX,
        reward: str | None = None,
    ) -> None:
        if decides not in REWARDS:
            raise ConfigError(f"Expected decides to be one of {sorted(REWARDS)}, got {decides!r}.")
        known = REWARDS[decides]
        if reward is not None and reward not in known:
            raise ConfigError(f"Expected a reward of {list(known)} where {decides} is decided, got {reward!r}.")
        if not prompts or max_new_tokens < 2 or not 1 <= gamma_max <= GAMMA_MAX:
            raise ConfigError(
                f"Expected at least one prompt, max_new_tokens of at least 2 and gamma_max from 1 to {GAMMA_MAX}, got "
                f"{len(prompts)}, {max_new_tokens} and {gamma_max}."
            )
        self.engine, self.prompts, self.reward = engine, tuple(prompts), reward or known[0]
        self.max_new_tokens, self.gamma_max, self.per_token = max_new_tokens, gamma_max, decides == "per_token"
        self.plain_s = cost.plain_s(compression)
        self.rate = 1.0 / self.plain_s
        schema = STOPPING_SCHEMA if self.per_token else SCHEMA
        self.observation_space = spaces.Box(schema.low, schema.high, dtype=np.float32)
        self.action_space = spaces.Discrete(2 if self.per_token else gamma_max + 1)
        self._memory = RequestMemory(
            cost_ratio=cost.cost_ratio(compression),
            bits_per_weight=BITS_PER_WEIGHT[compression],
            budget=max_new_tokens,
        )
        self._running = False
        engine.capture_ahead(max(len(prompt.tokens) for prompt in prompts) + max_new_tokens)  # in no step's time

    def set_lambda(self, tokens_per_second: float) -> None:
        """Sets the throughput that `lambda_throughput` compares with."""
        self.rate = tokens_per_second

    @device_errors_explained()
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Prefills a prompt; `options={"prompt": index}` picks it."""
        super().reset(seed=seed)
        chosen = (options or {}).get("prompt")
        if chosen is not None and not 0 <= int(chosen) < len(self.prompts):
            raise ConfigError(f"Expected the index of one of {len(self.prompts)} prompts, got {chosen!r}.")
        order = [int(chosen)] if chosen is not None else self.np_random.permutation(len(self.prompts)).tolist()
        for index in order:
            prompt = self.prompts[index]
            first = self.engine.start(prompt.tokens, max_new_tokens=self.max_new_tokens, request=prompt.prompt_id)
            if self.engine.finish is None:
                break
        else:
            raise ConfigError("Expected a prompt whose output has more than one token, found none. Use other prompts.")
        self._memory.start(first.outcome.target_entropy, first.outcome.target_confidence)
        self._running = True
        return self._begin(), {"prompt_id": prompt.prompt_id}

    @device_errors_explained()
    def step(self, action: np.int64) -> tuple[FloatArray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Runs the models for one action."""
        if not self._running:
            raise ResetNeeded("Expected a running episode: call reset() first, and again after an episode has ended.")
        if not self.action_space.contains(action):
            raise ConfigError(f"Expected an action in {self.action_space}, got {action!r}.")
        if not self.per_token:
            return self._verified(self.engine.step(int(action)), 0.0)
        already_s = self.engine.draft_seconds
        if action == DRAFT and self.engine.can_draft:
            self.engine.draft_token()
            self._memory.add_draft(*self.engine.draft_signals[-1].tolist())
            if self.engine.can_draft:
                seconds = self.engine.draft_seconds - already_s
                info = {"num_drafted": 1, "num_accepted": 0, "num_emitted": 0, "seconds": seconds}
                return self._observe(), self._worth(0, seconds), False, False, info
        return self._verified(self.engine.verify_draft(), already_s)

    def _begin(self) -> FloatArray:
        self._memory.render()
        if self.per_token and self._running:
            self.engine.begin_step(self.gamma_max)
        return self._observe()

    def _observe(self) -> FloatArray:
        return (self._memory.inside if self.per_token else self._memory.before).copy()

    def _verified(
        self, step: DecodeStep, already_s: float
    ) -> tuple[FloatArray, SupportsFloat, bool, bool, dict[str, Any]]:
        outcome = step.outcome
        if not self.per_token:
            for signals in outcome.draft_signals.tolist():
                self._memory.add_draft(*signals)
        self._memory.end_step(
            num_drafted=outcome.num_drafted,
            num_accepted=outcome.num_accepted,
            num_emitted=outcome.num_emitted,
            target_entropy=outcome.target_entropy,
            target_confidence=outcome.target_confidence,
        )
        terminated, truncated = outcome.finish == "eos", outcome.finish == "length"
        self._running = outcome.finish is None
        seconds = outcome.seconds - already_s
        info = {name: getattr(outcome, name) for name in STEP_INFO} | {"seconds": seconds, "outcome": outcome}
        reward = self._worth(outcome.num_emitted, seconds)
        return self._begin(), reward, terminated, truncated, info

    def _worth(self, num_emitted: int, seconds: float) -> float:
        if self.reward == "throughput":
            return float(rewards.throughput(num_emitted, seconds, self.plain_s))
        if self.reward == "time":
            return float(rewards.time(seconds, self.plain_s))
        if self.reward == "tokens":
            return float(num_emitted)
        return float(rewards.lambda_throughput(num_emitted, seconds, self.rate))
