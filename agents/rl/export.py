# SPDX-License-Identifier: Apache-2.0
"""Copies the network that decides out of a learner, normalisation included, into plain arrays."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from sb3_contrib import QRDQN, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from speckv.agents.rl.learners import NormalisingExtractor
from speckv.observation import SCHEMA, STOPPING_SCHEMA
from speckv.runtime.learned import LstmPolicy, MlpPolicy, NetworkPolicy
from speckv.types import GAMMA_MAX, FloatArray

Arrays = tuple[FloatArray, ...]

_NAMES: Mapping[type[BaseAlgorithm], str] = {
    A2C: "a2c",
    DQN: "dqn",
    PPO: "ppo",
    QRDQN: "qr-dqn",
    RecurrentPPO: "recurrent-ppo",
}


def export_policy(model: BaseAlgorithm, *, name: str | None = None, gamma_max: int = GAMMA_MAX) -> NetworkPolicy:
    """Makes a policy of the learner's best action; with two actions, token by token, it reads `STOPPING_SCHEMA`."""
    stops = model.observation_space.shape == (STOPPING_SCHEMA.size,)
    assert isinstance(model.action_space, gymnasium.spaces.Discrete)
    default = next(title for kind, title in _NAMES.items() if isinstance(model, kind))
    weights, biases = _layers(model)
    shared: dict[str, Any] = {
        "name": name or (f"{default}-stopping" if stops else default),
        "gammas": (0, gamma_max) if stops else tuple(range(int(model.action_space.n))),
        "mean": _copied(_extractor(model).mean),
        "std": _copied(_extractor(model).std),
        "weights": weights,
        "biases": biases,
    }
    if isinstance(model, RecurrentPPO):
        return LstmPolicy(**shared, **_gates(model))
    return MlpPolicy(schema=STOPPING_SCHEMA if stops else SCHEMA, **shared)


def _extractor(model: BaseAlgorithm) -> NormalisingExtractor:
    if isinstance(model, QRDQN):
        extractor = model.quantile_net.features_extractor
    elif isinstance(model, DQN):
        extractor = model.q_net.features_extractor
    else:
        extractor = model.policy.features_extractor
    assert isinstance(extractor, NormalisingExtractor)
    return extractor


def _layers(model: BaseAlgorithm) -> tuple[Arrays, Arrays]:
    if isinstance(model, QRDQN):
        return _mean_over_quantiles(*_copied_layers(model.quantile_net.quantile_net), model.n_quantiles)
    if isinstance(model, DQN):
        return _copied_layers(model.q_net.q_net)
    assert isinstance(model.policy, ActorCriticPolicy)
    return _copied_layers(nn.Sequential(*model.policy.mlp_extractor.policy_net, model.policy.action_net))


def _mean_over_quantiles(weights: Arrays, biases: Arrays, num_quantiles: int) -> tuple[Arrays, Arrays]:
    """The mean of linear outputs is the output of their mean."""
    weight, bias = weights[-1], biases[-1]
    last = weight.reshape(num_quantiles, -1, weight.shape[1]).mean(axis=0, dtype=np.float64)
    level = bias.reshape(num_quantiles, -1).mean(axis=0, dtype=np.float64)
    return (*weights[:-1], last.astype(np.float32)), (*biases[:-1], level.astype(np.float32))


def _copied_layers(network: nn.Sequential) -> tuple[Arrays, Arrays]:
    layers = [module for module in network if isinstance(module, nn.Linear)]
    return tuple(_copied(layer.weight) for layer in layers), tuple(_copied(layer.bias) for layer in layers)


def _gates(model: RecurrentPPO) -> dict[str, Any]:
    """PyTorch keeps two biases that only ever act as their sum."""
    lstm = model.policy.lstm_actor
    assert isinstance(lstm, nn.LSTM)
    (input_weight, state_weight, input_bias, state_bias) = lstm.parameters()
    return {
        "input_weight": _copied(input_weight),
        "state_weight": _copied(state_weight),
        "gate_bias": _copied(input_bias + state_bias),
    }


def _copied(tensor: Tensor) -> FloatArray:
    return np.array(tensor.detach().cpu().numpy(), np.float32)
