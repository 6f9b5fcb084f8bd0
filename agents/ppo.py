# SPDX-License-Identifier: Apache-2.0
"""Stable-Baselines3's PPO, set up for choosing gamma: many environments, large batches, one thread, a small network.

Observations are normalised inside the network, by constants measured before training: they travel with the weights,
and an export cannot forget them.
"""

from collections.abc import Mapping

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from torch import Tensor, nn

from agents.ppo_settings import PPOSettings
from speckv.observation import SCHEMA, STOPPING_SCHEMA
from speckv.runtime import MlpPolicy
from speckv.runtime.policy import STEP_ENVIRONMENT, STOPPING_ENVIRONMENT
from speckv.traces import GAMMA_MAX
from speckv.types import FloatArray

MIN_STD = 1e-3
"""A feature that varies less than this is constant; dividing by it would blow up the first value that differs."""


DRAFT_SHARE = 0.8
"""How often a random policy drafts another token rather than verify."""


class WithoutBootstrap(VecEnvWrapper):
    """Hides that an episode was truncated.

    At discount 0 the value behind a truncation is multiplied by zero, yet Stable-Baselines3 asks the network for it,
    one environment at a time, which costs time for nothing.
    """

    def reset(self) -> VecEnvObs:
        """Passes through."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Passes through all but the mark."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for row in np.flatnonzero(dones):
            infos[row].pop("TimeLimit.truncated", None)
        return observations, rewards, dones, infos


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


def build_ppo(settings: PPOSettings, env: VecEnv, *, seed: int, mean: FloatArray, std: FloatArray) -> PPO:
    """Makes an untrained learner; seeds PyTorch's, NumPy's and Python's global generators, which PPO draws from."""

    def learning_rate(remaining: float) -> float:
        return settings.learning_rate * remaining

    return PPO(
        "MlpPolicy",
        env if settings.discount else WithoutBootstrap(env),
        learning_rate=learning_rate,
        n_steps=settings.num_steps,
        batch_size=settings.batch_size,
        n_epochs=settings.num_epochs,
        gamma=settings.discount,
        gae_lambda=settings.gae_lambda,
        clip_range=settings.clip_range,
        ent_coef=settings.entropy_coef,
        policy_kwargs={
            "features_extractor_class": NormalisingExtractor,
            "features_extractor_kwargs": {"mean": mean, "std": std},
            "net_arch": {"pi": list(settings.hidden), "vf": list(settings.hidden)},
            "activation_fn": nn.Tanh,
        },
        seed=seed,
        device="cpu",
        verbose=0,
    )


def export_policy(
    model: PPO,
    *,
    provenance: Mapping[str, str | int | float],
    name: str | None = None,
    gamma_max: int = GAMMA_MAX,
) -> MlpPolicy:
    """Copies the policy network out of a learner, normalisation included.

    A learner with the two actions of token-by-token control gives a policy that reads `STOPPING_SCHEMA`.

    Args:
        model: Trained.
        provenance: Where it came from.
        name: Shown in tables; "ppo" or "ppo-stopping" by default.
        gamma_max: Most tokens of a draft.
    """
    extractor = model.policy.features_extractor
    assert isinstance(extractor, NormalisingExtractor)
    assert isinstance(model.action_space, gymnasium.spaces.Discrete)
    layers = [m for m in model.policy.mlp_extractor.policy_net if isinstance(m, nn.Linear)]
    output = model.policy.action_net
    assert isinstance(output, nn.Linear)

    stops = model.observation_space.shape == (STOPPING_SCHEMA.size,)

    def copied(tensor: Tensor) -> FloatArray:
        return np.array(tensor.detach().cpu().numpy(), np.float32)

    return MlpPolicy(
        name=name or ("ppo-stopping" if stops else "ppo"),
        schema=STOPPING_SCHEMA if stops else SCHEMA,
        gammas=(0, gamma_max) if stops else tuple(range(int(model.action_space.n))),
        mean=copied(extractor.mean),
        std=copied(extractor.std),
        weights=tuple(copied(layer.weight) for layer in (*layers, output)),
        biases=tuple(copied(layer.bias) for layer in (*layers, output)),
        environment=STOPPING_ENVIRONMENT if stops else STEP_ENVIRONMENT,
        provenance=provenance,
    )
