# SPDX-License-Identifier: Apache-2.0
"""Observations are normalised inside the networks, by constants measured before training.

They travel with the weights, and an export cannot forget them.
"""

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from speckv.types import FloatArray

MIN_STD = 1e-3
"""A feature that varies less than this is constant; dividing by it would blow up the first value that differs."""
DRAFT_SHARE = 0.8
"""How often a random policy drafts another token rather than verify."""


class NormalisingExtractor(BaseFeaturesExtractor):
    """Feeds (observation - mean) / std to the networks; the constants are saved with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, observation_space: gymnasium.spaces.Box, mean: FloatArray, std: FloatArray) -> None:
        super().__init__(observation_space, features_dim=len(mean))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, observations: Tensor) -> Tensor:
        """Normalises a batch of raw observations."""
        return (observations - self.mean) / self.std


def measure_normalisation(env: VecEnv, num_steps: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of each observation field under random actions.

    Args:
        env: Used up: seed and reset it before training on it.
        num_steps: Environment steps, over all environments together.
        seed: Of environments and actions.
    """
    assert isinstance(env.action_space, gymnasium.spaces.Discrete)
    rng = np.random.default_rng(seed)
    env.seed(seed)
    seen = [np.asarray(env.reset(), np.float64)]
    for _ in range(-(-num_steps // env.num_envs)):
        actions = rng.integers(0, env.action_space.n, env.num_envs)
        if env.action_space.n == 2:
            actions = (rng.random(env.num_envs) < DRAFT_SHARE).astype(np.int64)
        observations, *_ = env.step(actions)
        seen.append(np.asarray(observations, np.float64))
    rows = np.concatenate(seen)
    std = rows.std(axis=0)
    return rows.mean(axis=0).astype(np.float32), np.where(std < MIN_STD, 1.0, std).astype(np.float32)
