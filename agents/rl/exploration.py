# SPDX-License-Identifier: Apache-2.0
"""Epsilon-greedy exploration for many environments: each draws for itself."""

from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib import QRDQN
from stable_baselines3 import DQN


def explore(actions: NDArray[np.int64], num_actions: int, rate: float) -> NDArray[np.int64]:
    """Replaces a share of actions by random ones, drawn from PyTorch's global generator.

    Stable-Baselines3 draws once for all environments together, so that a whole step is random or none of it; and its
    random actions come one by one from a Gymnasium space, which takes longer than stepping the environments.
    """
    explores = torch.rand(len(actions)).numpy() < rate
    drawn = torch.randint(num_actions, (len(actions),)).numpy()
    return np.where(explores, drawn, actions)


class _ExploresEachForItself:
    """Puts `explore` in the place of Stable-Baselines3's draws."""

    def _sample_action(
        self,
        learning_starts: int,
        action_noise: Any = None,  # noqa: ARG002 - the learner's signature
        n_envs: int = 1,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        assert isinstance(self, DQN | QRDQN)
        assert self._last_obs is not None
        assert isinstance(self.action_space, gymnasium.spaces.Discrete)
        if self.num_timesteps < learning_starts:
            actions, rate = np.zeros(n_envs, np.int64), 1.0
        else:
            (actions, _), rate = self.policy.predict(self._last_obs, deterministic=True), self.exploration_rate
        chosen = explore(actions, int(self.action_space.n), rate)
        return chosen, chosen


class ParallelDQN(_ExploresEachForItself, DQN):
    """DQN on many environments."""


class ParallelQRDQN(_ExploresEachForItself, QRDQN):
    """QR-DQN on many environments."""
