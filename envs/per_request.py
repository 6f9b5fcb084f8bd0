# SPDX-License-Identifier: Apache-2.0
"""One decision a request: a wrapper that keeps the first action to the end of the episode."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from envs.gamma_selection import GammaSelectionEnv
from speckv.errors import ConfigError
from speckv.types import FloatArray


class PerRequest(gym.Wrapper[FloatArray, np.int64, FloatArray, np.int64], RecordConstructorArgs):
    """Makes an episode of one action: gamma for the whole request.

    The reward is the sum over the request's decode steps, so it must be one that adds up: `time`,
    `lambda_throughput`, `tokens_minus_cost` or `tokens`.

    Args:
        env: A `SpecKV/GammaSelection-v0`, with Gymnasium's own wrappers or without.

    Raises:
        ConfigError: for another environment, or for the reward `throughput`, a ratio, whose sum means nothing.
    """

    def __init__(self, env: gym.Env[FloatArray, np.int64]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        inner = env.unwrapped
        if not isinstance(inner, GammaSelectionEnv):
            raise ConfigError(
                f"Expected SpecKV/GammaSelection-v0 to decide once a request, got {type(inner).__name__}."
            )
        if inner.core.reward_name == "throughput":
            raise ConfigError(
                "Expected a reward that adds up over decode steps, such as time, got throughput, a ratio. "
                "Make the environment with reward='time'."
            )

    def step(self, action: np.int64) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Decodes the whole request with one gamma; terminated and truncated as at its last decode step."""
        total = 0.0
        while True:
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                return observation, total, terminated, truncated, info
