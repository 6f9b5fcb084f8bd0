# SPDX-License-Identifier: Apache-2.0
"""State of a learner between two rollouts, besides network, optimiser, settings and global generators."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib import QRDQN, RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer

Array = NDArray[Any]

_REPLAYED = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
_LSTM = ("lstm.policy_hidden", "lstm.policy_cell", "lstm.value_hidden", "lstm.value_cell")


def get_arrays(model: BaseAlgorithm, *, with_replay: bool) -> dict[str, Array]:
    """Copies the arrays."""
    assert isinstance(model._last_obs, np.ndarray)
    arrays = {"last_obs": model._last_obs, "last_episode_starts": np.asarray(model._last_episode_starts)}
    if isinstance(model, RecurrentPPO):
        states = _lstm_states(model)
        arrays |= {name: tensor.numpy() for name, tensor in zip(_LSTM, (*states.pi, *states.vf), strict=True)}
    if isinstance(model, DQN | QRDQN) and with_replay:
        memory = _memory(model)
        arrays |= {f"replay.{name}": getattr(memory, name)[: memory.size()] for name in _REPLAYED}
    return arrays


def get_counters(model: BaseAlgorithm) -> dict[str, Any]:
    """Copies everything that is no array, as JSON can hold it."""
    counters: dict[str, Any] = {
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "episodes": [_plain(episode) for episode in model.ep_info_buffer or ()],
    }
    if isinstance(model, DQN | QRDQN):
        memory = _memory(model)
        counters |= {
            "episode_num": model._episode_num,
            "n_calls": model._n_calls,
            "exploration_rate": model.exploration_rate,
            "replay_pos": memory.pos,
            "replay_full": memory.full,
        }
    return counters


def set_state(model: BaseAlgorithm, arrays: dict[str, Array], counters: Mapping[str, Any]) -> None:
    """Puts back what `get_arrays` and `get_counters` gave, removing the arrays from `arrays`.

    KeyError and ValueError mean that something is missing or has another shape.
    """
    model._last_obs = arrays.pop("last_obs")
    model._last_episode_starts = arrays.pop("last_episode_starts")
    model.num_timesteps, model._n_updates = counters["num_timesteps"], counters["n_updates"]
    model.ep_info_buffer = deque(counters["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    if isinstance(model, RecurrentPPO):
        hidden, cell, value_hidden, value_cell = (torch.from_numpy(arrays.pop(name)) for name in _LSTM)
        # Declared as None alone, where it is made.
        states = RNNStates((hidden, cell), (value_hidden, value_cell))
        model._last_lstm_states = states  # type: ignore[assignment]
    if isinstance(model, DQN | QRDQN):
        model._episode_num, model._n_calls = counters["episode_num"], counters["n_calls"]
        model.exploration_rate = counters["exploration_rate"]
        memory = _memory(model)
        memory.pos, memory.full = counters["replay_pos"], counters["replay_full"]
        for name in _REPLAYED:
            getattr(memory, name)[: memory.size()] = arrays.pop(f"replay.{name}")


def _lstm_states(model: RecurrentPPO) -> RNNStates:
    states: object = model._last_lstm_states
    assert isinstance(states, RNNStates)
    return states


def _memory(model: DQN | QRDQN) -> ReplayBuffer:
    assert isinstance(model.replay_buffer, ReplayBuffer)
    return model.replay_buffer


def _plain(episode: Mapping[str, float]) -> dict[str, float]:
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in episode.items()}
