# SPDX-License-Identifier: Apache-2.0
"""Stable-Baselines3's learners, set up for choosing gamma: many environments, large batches, small networks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from torch import nn

from agents.rl.exploration import ParallelDQN, ParallelQRDQN
from agents.rl.hyperparameters import (
    A2CSettings,
    DQNSettings,
    LearnerSettings,
    OnPolicySettings,
    PPOSettings,
    QRDQNSettings,
    RecurrentPPOSettings,
)
from agents.rl.normalisation import NormalisingExtractor, measure_normalisation
from speckv.observation import hidden_columns, hide_from
from speckv.types import FloatArray

Options = dict[str, Any]

_NORMALISATION_SEED = 1_000_003
"""Added to the run's seed, so that the random policy's episodes are not the first that the learner meets."""


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


def build_learner(settings: LearnerSettings, env: VecEnv, seed: int, *, hide: Sequence[str] = ()) -> BaseAlgorithm:
    """Measures the normalisation with a random policy, then makes an untrained learner and seeds its environments.

    Args:
        settings: Hyper-parameters.
        env: To learn in.
        seed: Of everything random.
        hide: Features, or groups of them, that the learner is not to see.
    """
    mean, std = measure_normalisation(env, settings.normalisation_steps, seed + _NORMALISATION_SEED)
    mean, std = hide_from(mean, std, hidden_columns(hide))
    # Seeds the environments too: environment k gets seed + k at the learner's first reset.
    return make_learner(settings, env, seed=seed, mean=mean, std=std)


def make_learner(
    settings: LearnerSettings, env: VecEnv, *, seed: int, mean: FloatArray, std: FloatArray
) -> BaseAlgorithm:
    """Makes an untrained learner; seeds PyTorch's, NumPy's and Python's global generators, which it draws from."""
    network = {
        "features_extractor_class": NormalisingExtractor,
        "features_extractor_kwargs": {"mean": mean, "std": std},
        "activation_fn": nn.Tanh,
    }
    shared = {
        "learning_rate": falling(settings.learning_rate),
        "gamma": settings.discount,
        "seed": seed,
        "device": "cpu",
        "verbose": 0,
    }
    make = next(make for kind, make in _MAKERS.items() if type(settings) is kind)
    return make(settings, env, network, shared)


def falling(learning_rate: float) -> Callable[[float], float]:
    """A learning rate that falls linearly to zero, and no further: a last rollout may go beyond the run's end."""
    return lambda remaining: learning_rate * max(remaining, 0.0)


def _on_policy(settings: OnPolicySettings) -> Options:
    return {
        "n_steps": settings.num_steps,
        "gae_lambda": settings.gae_lambda,
        "ent_coef": settings.entropy_coef,
    }


def _actor_critic(settings: OnPolicySettings) -> Options:
    return {"net_arch": {"pi": list(settings.hidden), "vf": list(settings.hidden)}}


def _clipped(settings: PPOSettings) -> Options:
    return _on_policy(settings) | {
        "batch_size": settings.batch_size,
        "n_epochs": settings.num_epochs,
        "clip_range": settings.clip_range,
    }


def _seen_by(settings: OnPolicySettings, env: VecEnv) -> VecEnv:
    return env if settings.discount else WithoutBootstrap(env)


def _ppo(settings: PPOSettings, env: VecEnv, network: Options, shared: Options) -> BaseAlgorithm:
    options = _clipped(settings) | shared
    return PPO("MlpPolicy", _seen_by(settings, env), policy_kwargs=network | _actor_critic(settings), **options)


def _recurrent_ppo(settings: RecurrentPPOSettings, env: VecEnv, network: Options, shared: Options) -> BaseAlgorithm:
    memory = {"lstm_hidden_size": settings.lstm_hidden, "enable_critic_lstm": False}
    return RecurrentPPO(
        "MlpLstmPolicy",
        _seen_by(settings, env),
        policy_kwargs=network | _actor_critic(settings) | memory,
        **_clipped(settings) | shared,
    )


def _a2c(settings: A2CSettings, env: VecEnv, network: Options, shared: Options) -> BaseAlgorithm:
    return A2C(
        "MlpPolicy",
        _seen_by(settings, env),
        normalize_advantage=True,
        policy_kwargs=network | _actor_critic(settings),
        **_on_policy(settings) | shared,
    )


def _off_policy(settings: DQNSettings) -> Options:
    return {
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


def _dqn(settings: DQNSettings, env: VecEnv, network: Options, shared: Options) -> BaseAlgorithm:
    layers = {"net_arch": list(settings.hidden)}
    return ParallelDQN("MlpPolicy", env, policy_kwargs=network | layers, **_off_policy(settings) | shared)


def _qr_dqn(settings: QRDQNSettings, env: VecEnv, network: Options, shared: Options) -> BaseAlgorithm:
    layers = {"net_arch": list(settings.hidden), "n_quantiles": settings.num_quantiles}
    return ParallelQRDQN("MlpPolicy", env, policy_kwargs=network | layers, **_off_policy(settings) | shared)


_MAKERS: Mapping[type[LearnerSettings], Callable[[Any, VecEnv, Options, Options], BaseAlgorithm]] = {
    A2CSettings: _a2c,
    DQNSettings: _dqn,
    PPOSettings: _ppo,
    QRDQNSettings: _qr_dqn,
    RecurrentPPOSettings: _recurrent_ppo,
}
