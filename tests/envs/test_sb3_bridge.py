# SPDX-License-Identifier: Apache-2.0
"""The bridge to Stable-Baselines3: its conventions, and one update of PPO."""

from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from speckv.envs import GammaSelectionVectorEnv
from speckv.envs.sb3_bridge import SB3VecEnv
from speckv.errors import ConfigError
from tests.fakes_traces import make_cost_table, random_traces

NUM_ENVS = 4


def make_vector(num_envs: int = NUM_ENVS, **settings: Any) -> GammaSelectionVectorEnv:
    return GammaSelectionVectorEnv(
        num_envs, traces=random_traces(max_new_tokens=20), cost=make_cost_table(), **settings
    )


def test_same_steps_in_the_other_convention() -> None:
    bridge, envs = SB3VecEnv(make_vector()), make_vector()
    bridge.seed(9)
    np.testing.assert_array_equal(bridge.reset(), envs.reset(seed=9)[0])
    rng = np.random.default_rng(0)
    ends = set()
    for _ in range(150):
        actions = rng.integers(0, 17, NUM_ENVS)
        observations, rewards, dones, infos = bridge.step(actions)
        expected, expected_rewards, terminated, truncated, expected_infos = envs.step(actions)
        np.testing.assert_array_equal(observations, expected)
        np.testing.assert_array_equal(rewards, expected_rewards.astype(np.float32))
        np.testing.assert_array_equal(dones, terminated | truncated)
        assert rewards.dtype == np.float32
        for k in range(NUM_ENVS):
            if not dones[k]:
                assert infos[k] == {}
                continue
            ends.add(bool(truncated[k]))
            assert infos[k]["TimeLimit.truncated"] == truncated[k]
            np.testing.assert_array_equal(infos[k]["terminal_observation"], expected_infos["final_obs"][k])
            decode = expected_infos["final_info"]["decode"]
            assert infos[k]["episode"]["r"] == decode["return"][k]
            assert infos[k]["episode"]["l"] == decode["num_steps"][k]
            assert infos[k]["episode"]["seconds"] == decode["seconds"][k]
    assert ends == {True, False}


def test_seeds_and_options_are_used_once() -> None:
    bridge, envs = SB3VecEnv(make_vector()), make_vector()
    playable = envs.core.playable
    bridge.seed(3)
    bridge.set_options([{"sequence": int(playable[k])} for k in range(NUM_ENVS)])
    bridge.reset()
    assert bridge.last_infos["sequence"].tolist() == playable[:NUM_ENVS].tolist()
    envs.reset(seed=3, options={"sequence": playable[:NUM_ENVS]})
    np.testing.assert_array_equal(bridge.reset(), envs.reset()[0])


def test_ppo_takes_an_update() -> None:
    bridge = SB3VecEnv(make_vector(gamma_max=8))
    model = PPO("MlpPolicy", bridge, n_steps=64, batch_size=64, n_epochs=1, gamma=0.0, seed=0, device="cpu")
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(64 * NUM_ENVS)
    after = list(model.policy.parameters())
    assert any(not bool((old == new).all()) for old, new in zip(before, after, strict=True))
    assert model.num_timesteps == 64 * NUM_ENVS
    assert model.ep_info_buffer
    assert {"r", "l", "num_tokens", "seconds"} <= set(model.ep_info_buffer[0])


def test_wrappers_of_stable_baselines3() -> None:
    envs = VecNormalize(VecMonitor(SB3VecEnv(make_vector())), norm_reward=False)
    envs.seed(0)
    envs.reset()
    rng = np.random.default_rng(0)
    for _ in range(60):
        observations, _, dones, infos = envs.step(rng.integers(0, 17, NUM_ENVS))
        assert isinstance(observations, np.ndarray)
        for k in np.flatnonzero(dones):
            assert infos[k]["episode"]["l"] > 0


def test_attributes_and_methods_are_shared() -> None:
    bridge = SB3VecEnv(make_vector(reward="lambda_throughput"))
    assert bridge.get_attr("num_envs") == [NUM_ENVS] * NUM_ENVS
    assert bridge.get_attr("num_envs", [0, 2]) == [NUM_ENVS] * 2
    assert bridge.get_attr("num_envs", 1) == [NUM_ENVS]
    assert bridge.env_is_wrapped(VecMonitor) == [False] * NUM_ENVS
    bridge.seed(0)
    bridge.reset()
    bridge.env_method("set_lambda", {"fp16": 0.0, "nf4": 0.0})
    _, rewards, _, _ = bridge.step(np.full(NUM_ENVS, 2))
    np.testing.assert_array_equal(rewards, bridge.last_infos["num_emitted"])
    bridge.set_attr("note", "kept")
    assert bridge.get_attr("note", 0) == ["kept"]
    with pytest.raises(ConfigError, match="call 'set_lambda' in all environments at once, got indices 0"):
        bridge.env_method("set_lambda", {"fp16": 1.0}, indices=0)
    with pytest.raises(ConfigError, match=r"set 'note' in all environments at once, got indices \[0\]"):
        bridge.set_attr("note", "lost", indices=[0])
    bridge.close()


def test_other_autoreset_modes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = make_vector()
    monkeypatch.setattr(envs, "metadata", {"autoreset_mode": AutoresetMode.NEXT_STEP})
    with pytest.raises(ConfigError, match="that resets in the same step, got autoreset mode"):
        SB3VecEnv(envs)
