# SPDX-License-Identifier: Apache-2.0
"""Makes learners of Stable-Baselines3 that choose gamma in many environments with small networks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib import QRDQN, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from torch import Tensor, nn

from speckv.agents.rl.hyperparameters import (
    A2CSettings,
    DQNSettings,
    LearnerSettings,
    OnPolicySettings,
    PPOSettings,
    QRDQNSettings,
    RecurrentPPOSettings,
)
from speckv.observation import hidden_columns, hide_from
from speckv.types import FloatArray

Options = dict[str, Any]

_NORMALISATION_SEED = 1_000_003
"""Added to the run's seed, so that the random policy's episodes are not the learner's first."""
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
    """Mean and deviation of each observation field under random actions; seed and reset `env` before training on it."""
    assert isinstance(env.action_space, gymnasium.spaces.Discrete)
    rng = np.random.default_rng(seed)
    env.seed(seed)
    observed = [np.asarray(env.reset(), np.float64)]
    for _ in range(-(-num_steps // env.num_envs)):
        actions = rng.integers(0, env.action_space.n, env.num_envs)
        if env.action_space.n == 2:
            actions = (rng.random(env.num_envs) < DRAFT_SHARE).astype(np.int64)
        observations, *_ = env.step(actions)
        observed.append(np.asarray(observations, np.float64))
    rows = np.concatenate(observed)
    std = rows.std(axis=0)
    return rows.mean(axis=0).astype(np.float32), np.where(std < MIN_STD, 1.0, std).astype(np.float32)


def explore(actions: NDArray[np.int64], num_actions: int, rate: float) -> NDArray[np.int64]:
    """Replaces a share of actions by random ones, drawn from PyTorch's global generator.

    Stable-Baselines3 draws once for all environments together, and from a Gymnasium space, which is slower than a step.
    """
    explores = torch.rand(len(actions)).numpy() < rate
    drawn = torch.randint(num_actions, (len(actions),)).numpy()
    return np.where(explores, drawn, actions)


class _ExploresEach:
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


class ParallelDQN(_ExploresEach, DQN):
    """DQN on many environments."""


class ParallelQRDQN(_ExploresEach, QRDQN):
    """QR-DQN on many environments."""


class WithoutBootstrap(VecEnvWrapper):
    """Removes the mark of truncated episodes.

    At discount 0 the value of their last state has no effect, yet Stable-Baselines3 computes it for each in turn.
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


def build_learner(settings: LearnerSettings, env: VecEnv, seed: int, *, hide: Sequence[str] = ()) -> BaseAlgorithm:
    """Measures the normalisation with a random policy, then makes an untrained learner and seeds its environments."""
    mean, std = measure_normalisation(env, settings.normalisation_steps, seed + _NORMALISATION_SEED)
    mean, std = hide_from(mean, std, hidden_columns(hide))
    # Seeds the environments too: environment k gets seed + k at the learner's first reset.
    return make_learner(settings, env, seed=seed, mean=mean, std=std)


def make_learner(
    settings: LearnerSettings, env: VecEnv, *, seed: int, mean: FloatArray, std: FloatArray
) -> BaseAlgorithm:
    """Makes an untrained learner; seeds PyTorch's, NumPy's and Python's global generators, which it draws from."""
    network: Options = {
        "features_extractor_class": NormalisingExtractor,
        "features_extractor_kwargs": {"mean": mean, "std": std},
        "activation_fn": nn.Tanh,
        "net_arch": list(settings.hidden),
    }
    options: Options = {
        "learning_rate": falling(settings.learning_rate),
        "gamma": settings.discount,
        "seed": seed,
        "device": "cpu",
        "verbose": 0,
    }
    if isinstance(settings, OnPolicySettings):
        env = env if settings.discount else WithoutBootstrap(env)
        network["net_arch"] = {"pi": list(settings.hidden), "vf": list(settings.hidden)}
        options |= {
            "n_steps": settings.num_steps,
            "gae_lambda": settings.gae_lambda,
            "ent_coef": settings.entropy_coef,
        }
    if isinstance(settings, A2CSettings):
        options["normalize_advantage"] = True
    if isinstance(settings, PPOSettings):
        options |= {
            "batch_size": settings.batch_size,
            "n_epochs": settings.num_epochs,
            "clip_range": settings.clip_range,
        }
    if isinstance(settings, RecurrentPPOSettings):
        network |= {"lstm_hidden_size": settings.lstm_hidden, "enable_critic_lstm": False}
    if isinstance(settings, DQNSettings):
        options |= {
            "train_freq": (settings.num_steps, "step"),
            "gradient_steps": settings.gradient_steps,
            "batch_size": settings.batch_size,
            "buffer_size": settings.buffer_size,
            "learning_starts": settings.learning_starts,
            "target_update_interval": settings.target_interval,
            "n_steps": settings.return_steps,
            "exploration_fraction": settings.exploration_fraction,
            "exploration_final_eps": settings.final_exploration,
            "max_grad_norm": 10.0,
        }
    if isinstance(settings, QRDQNSettings):
        network["n_quantiles"] = settings.num_quantiles
    policy = "MlpLstmPolicy" if isinstance(settings, RecurrentPPOSettings) else "MlpPolicy"
    return _LEARNERS[type(settings)](policy, env, policy_kwargs=network, **options)


def falling(learning_rate: float) -> Callable[[float], float]:
    """A learning rate that falls linearly to zero, and no further: a last rollout may go beyond the run's end."""
    return lambda remaining: learning_rate * max(remaining, 0.0)


_LEARNERS: Mapping[type[LearnerSettings], Callable[..., BaseAlgorithm]] = {
    A2CSettings: A2C,
    DQNSettings: ParallelDQN,
    PPOSettings: PPO,
    QRDQNSettings: ParallelQRDQN,
    RecurrentPPOSettings: RecurrentPPO,
}
