# SPDX-License-Identifier: Apache-2.0
"""One decision a request: the wrapper adds up the whole request."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from speckv import envs
from speckv.errors import ConfigError
from tests.fakes_traces import make_cost_table, random_traces


def make(name: str = envs.GAMMA_SELECTION, **options: Any) -> gym.Env[np.ndarray, np.int64]:
    traces = random_traces(num_prompts=6, seed=1)
    return gym.make(name, traces=traces, cost=make_cost_table(), split=None, **options)


def test_an_episode_is_one_action_and_its_reward_the_sum_over_the_request() -> None:
    plain, wrapped = make(reward="time"), envs.PerRequest(make(reward="time"))
    first, _ = plain.reset(seed=3, options={"sequence": 2})
    seen, _ = wrapped.reset(seed=3, options={"sequence": 2})
    np.testing.assert_array_equal(seen, first)
    total, done = 0.0, False
    while not done:
        _, reward, terminated, truncated, info = plain.step(np.int64(3))
        total += float(reward)
        done = terminated or truncated
    _, reward, terminated, truncated, whole = wrapped.step(np.int64(3))
    assert reward == pytest.approx(total)
    assert terminated or truncated
    assert whole["decode"] == info["decode"]


# The checker would rather see the bare environment, and says so.
@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
def test_gymnasium_finds_nothing_to_complain_about() -> None:
    check_env(envs.PerRequest(make(reward="time").unwrapped), skip_render_check=True)


def test_a_ratio_does_not_add_up() -> None:
    with pytest.raises(ConfigError, match="adds up over decode steps"):
        envs.PerRequest(make())


def test_token_by_token_is_no_request() -> None:
    with pytest.raises(ConfigError, match="got DraftStoppingEnv"):
        envs.PerRequest(make(envs.DRAFT_STOPPING))
