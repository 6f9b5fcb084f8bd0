# SPDX-License-Identifier: Apache-2.0
"""Token by token: the same time and tokens as a whole decode step, and the vector form equal to scalar ones."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_sb3_env

from speckv.envs import DRAFT_STOPPING, DraftStoppingEnv, DraftStoppingVectorEnv
from speckv.errors import ConfigError
from speckv.observation import STOPPING_SCHEMA
from speckv.replay import replay_controller
from speckv.types import FloatArray
from tests.fakes_traces import compile_both, make_cost_table, make_sequence, make_traces, random_traces
from tests.speckv.test_stopping import Cautious

NUM_ENVS = 5
CONFIDENCE, DEPTH = STOPPING_SCHEMA.index("token_confidence"), STOPPING_SCHEMA.index("depth")
SETTINGS: list[dict[str, Any]] = [
    {},
    {"reward": "time", "gamma_max": 7, "reward_scale": 0.5},
    {"reward": "tokens_minus_cost", "budget": 20, "split": None},
]


def arguments(settings: dict[str, Any]) -> dict[str, Any]:
    traces = random_traces(max_new_tokens=25, seed=7)
    return {"traces": traces, "cost": make_cost_table(controller_s=0.125)} | settings


def test_it_passes_the_checkers_without_a_warning() -> None:
    env = gym.make(DRAFT_STOPPING, **arguments({}))
    check_env(env.unwrapped, skip_render_check=True)
    check_sb3_env(env.unwrapped)


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_vector_form_equals_scalar_ones(settings: dict[str, Any]) -> None:
    vector = DraftStoppingVectorEnv(NUM_ENVS, **arguments(settings))
    scalars = [DraftStoppingEnv(**arguments(settings)) for _ in range(NUM_ENVS)]
    observations, _ = vector.reset(seed=3)
    for k, env in enumerate(scalars):
        np.testing.assert_array_equal(observations[k], env.reset(seed=3 + k)[0])
    rng = np.random.default_rng(0)
    finished = 0
    for _ in range(400):
        actions = (rng.random(NUM_ENVS) < 0.75).astype(np.int64)
        observations, rewards, terminated, truncated, infos = vector.step(actions)
        for k, env in enumerate(scalars):
            observation, reward, ended, cut, info = env.step(actions[k])
            assert (rewards[k], terminated[k], truncated[k]) == (reward, ended, cut)
            assert (infos["num_emitted"][k], infos["seconds"][k]) == (info["num_emitted"], info["seconds"])
            if ended or cut:
                finished += 1
                np.testing.assert_array_equal(infos["final_obs"][k], observation)
                sums = infos["final_info"]["decode"]
                assert {name: sums[name][k] for name in info["decode"]} == info["decode"]
                observation, _ = env.reset()
            np.testing.assert_array_equal(observations[k], observation)
    assert finished > NUM_ENVS


def cautious_action(observation: FloatArray, cap: int, least: float) -> int:
    depth = round(float(observation[DEPTH]) * 16)
    return int(depth == 0 or (depth < cap and observation[CONFIDENCE] >= least))


@pytest.mark.parametrize("draft_prompt_s", [0.0, 0.25])
def test_it_sums_up_to_what_the_replay_of_whole_steps_gives(draft_prompt_s: float) -> None:
    traces = random_traces(num_prompts=6, seed=5)
    entries = {name: replace(e, draft_prompt_s=draft_prompt_s) for name, e in make_cost_table().entries.items()}
    cost = make_cost_table(controller_s=0.125, entries=entries)
    record = replay_controller(Cautious(6, least=0.4), *compile_both(traces, cost))
    env = DraftStoppingEnv(traces=traces, cost=cost, split=None, gamma_max=6, reward="time")
    for row in env.core.playable.tolist():
        observation, _ = env.reset(options={"sequence": row})
        over = False
        info: dict[str, Any] = {}
        while not over:
            action = np.int64(cautious_action(observation, 6, 0.4))
            observation, _, terminated, truncated, info = env.step(action)
            over = terminated or truncated
        sums = info["decode"]
        assert sums["seconds"] == pytest.approx(record.seconds[row], rel=1e-12)
        assert (sums["num_steps"], sums["num_tokens"]) == (record.num_steps[row], record.num_tokens[row])
        assert (sums["num_drafted"], sums["num_accepted"]) == (record.num_drafted[row], record.num_accepted[row])


def test_the_state_can_be_taken_out_and_put_back() -> None:
    rng = np.random.default_rng(1)
    one, other = (DraftStoppingVectorEnv(3, **arguments({})) for _ in range(2))
    one.reset(seed=0)
    for _ in range(17):
        one.step(rng.integers(0, 2, 3))
    other.set_state(*one.get_state())
    for _ in range(60):
        actions = rng.integers(0, 2, 3)
        mine, theirs = one.step(actions), other.step(actions)
        for a, b in zip(mine[:4], theirs[:4], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward": "throughput"}, "adds up"),
        ({"acceptance": "rejection"}, "never recorded"),
        ({"gamma_max": 0}, "from 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    traces = random_traces(sampled=True)
    with pytest.raises(ConfigError, match=message):
        DraftStoppingEnv(**(arguments({}) | {"traces": traces} | settings))


def test_it_renders_drafting_and_verifying() -> None:
    traces = make_traces([make_sequence([1, 1, 0, 1, 1, 1])], max_new_tokens=6)
    env = DraftStoppingEnv(traces=traces, cost=make_cost_table(), render_mode="ansi")
    env.reset(seed=0)
    env.step(np.int64(1))
    assert "drafting ? in" in str(env.render())
    env.step(np.int64(1))
    env.step(np.int64(0))
    assert "drafted +- in" in str(env.render())


def test_other_actions_are_refused() -> None:
    env = DraftStoppingVectorEnv(2, **arguments({}))
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"0 \(verify\) or 1 \(draft\)"):
        env.step(np.array([0, 2]))
