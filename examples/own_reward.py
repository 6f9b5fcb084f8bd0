# SPDX-License-Identifier: Apache-2.0
"""A reward of one's own: throughput with a penalty for tokens that are drafted and thrown away.

In Python, with any learner:   python examples/own_reward.py
With SpecKV's own learners, in the folder of this file:   speckv train agent=ppo reward=own_reward:frugal
"""

import gymnasium as gym
import numpy as np

import speckv.envs  # noqa: F401 - registers the environments
from speckv.replay import ReplayStep

PENALTY = 0.05
"""Of a rejected token, in units of plain decoding's throughput."""


def frugal(step: ReplayStep, plain_s: np.ndarray) -> np.ndarray:
    """Shape [N]: tokens a second over those of plain decoding, less a penalty for each rejected token."""
    rejected = step.num_drafted - step.num_accepted
    return np.asarray(step.num_emitted * plain_s / step.seconds - PENALTY * rejected)


if __name__ == "__main__":
    envs = gym.make_vec("SpecKV/GammaSelection-v0", num_envs=64, reward=frugal, compressions=["fp16"])
    for gamma in range(9):
        envs.reset(seed=0)
        rewards = [envs.step(np.full(64, gamma))[1].mean() for _ in range(200)]
        print(f"gamma {gamma}: mean reward {np.mean(rewards):.3f}")
