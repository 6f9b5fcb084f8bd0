# SPDX-License-Identifier: Apache-2.0
"""The vector environment against scalar ones, step by step."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from numpy.typing import NDArray

from speckv.envs import DRAFT_STOPPING, GAMMA_SELECTION, GammaSelectionEnv, GammaSelectionVectorEnv
from speckv.errors import ConfigError
from tests.fakes_traces import make_cost_table, random_traces

NUM_ENVS = 5
STEP_KEYS = ("num_drafted", "num_accepted", "num_emitted", "seconds")
START_KEYS = ("sequence", "prompt_id", "task", "compression")
SETTINGS: list[dict[str, Any]] = [
    {},
    {"reward": "time", "reward_scale": 0.5, "gamma_max": 7},
    {"reward": "lambda_throughput", "budget": 20, "split": None},
    {"reward": "tokens_minus_cost", "acceptance": "rejection"},
]


def arguments(settings: dict[str, Any]) -> dict[str, Any]:
    traces = random_traces(max_new_tokens=25, sampled=True, seed=7)
    return {"traces": traces, "cost": make_cost_table(controller_s=0.125)} | settings


def make_vector(num_envs: int = NUM_ENVS, **settings: Any) -> GammaSelectionVectorEnv:
    return GammaSelectionVectorEnv(num_envs, **arguments(settings))


@pytest.mark.parametrize("settings", SETTINGS)
def test_equals_scalar_environments_step_by_step(settings: dict[str, Any]) -> None:
    vector = make_vector(**settings)
    scalars = [GammaSelectionEnv(**arguments(settings)) for _ in range(NUM_ENVS)]
    observations, infos = vector.reset(seed=11)
    for k, env in enumerate(scalars):
        observation, info = env.reset(seed=11 + k)
        np.testing.assert_array_equal(observations[k], observation)
        assert {name: infos[name][k] for name in START_KEYS} == info
    rng = np.random.default_rng(0)
    finished = 0
    for _ in range(200):
        actions = rng.integers(0, vector.single_action_space.n, NUM_ENVS)  # type: ignore[attr-defined]
        observations, rewards, terminated, truncated, infos = vector.step(actions)
        for k, env in enumerate(scalars):
            observation, reward, ended, cut, info = env.step(actions[k])
            assert (rewards[k], terminated[k], truncated[k]) == (reward, ended, cut)
            assert {name: infos[name][k] for name in STEP_KEYS} == {name: info[name] for name in STEP_KEYS}
            if ended or cut:
                finished += 1
                np.testing.assert_array_equal(infos["final_obs"][k], observation)
                sums = infos["final_info"]["decode"]
                assert {name: sums[name][k] for name in info["decode"]} == info["decode"]
                observation, start = env.reset()
                assert {name: infos[name][k] for name in START_KEYS} == start
            else:
                assert "final_obs" not in infos or infos["final_obs"][k] is None
            np.testing.assert_array_equal(observations[k], observation)
    assert finished > 20


def test_infos_follow_gymnasiums_format() -> None:
    settings = arguments({})
    ours = GammaSelectionVectorEnv(NUM_ENVS, **settings)
    theirs = SyncVectorEnv([lambda: GammaSelectionEnv(**settings)] * NUM_ENVS, autoreset_mode=AutoresetMode.SAME_STEP)
    assert_same_infos(ours.reset(seed=3)[1], theirs.reset(seed=3)[1])
    rng = np.random.default_rng(0)
    for _ in range(100):
        actions = rng.integers(0, 17, NUM_ENVS)
        mine, reference = ours.step(actions)[4], theirs.step(actions)[4]
        # Ours tells the step's numbers of the environments that ended as well; Gymnasium only in final_info.
        for name in STEP_KEYS:
            assert mine[f"_{name}"].all()
            if "final_info" in reference:
                ended = reference["_final_info"]
                np.testing.assert_array_equal(mine[name][ended], reference["final_info"][name][ended])
            if name in reference:
                there = reference[f"_{name}"]
                np.testing.assert_array_equal(mine[name][there], reference[name][there])
        drop = {*STEP_KEYS, *(f"_{name}" for name in STEP_KEYS)}
        assert_same_infos(
            {k: v for k, v in mine.items() if k not in drop}, {k: v for k, v in reference.items() if k not in drop}
        )


def assert_same_infos(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        if isinstance(value, dict):
            assert_same_infos(ours[name], value)
        elif value.dtype == object:
            assert all(np.array_equal(a, b) for a, b in zip(ours[name], value, strict=True)), name
        else:
            np.testing.assert_array_equal(ours[name], value)
            assert ours[name].dtype == value.dtype, name


def test_made_by_gymnasium() -> None:
    made = gym.make_vec(
        GAMMA_SELECTION, num_envs=3, vectorization_mode="vector_entry_point", **arguments({"gamma_max": 4})
    )
    assert isinstance(made.unwrapped, GammaSelectionVectorEnv)
    assert made.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert made.action_space == gym.spaces.MultiDiscrete([5, 5, 5])
    observations, _ = made.reset(seed=0)
    assert observations in made.observation_space
    made.close()


def test_gymnasiums_statistics_fit_on_top() -> None:
    envs = RecordEpisodeStatistics(make_vector())
    envs.reset(seed=0)
    infos: dict[str, Any] = {}
    while "episode" not in infos:
        *_, infos = envs.step(np.full(NUM_ENVS, 3))
    ended = infos["_episode"]
    np.testing.assert_allclose(infos["episode"]["r"][ended], infos["final_info"]["decode"]["return"][ended])


def test_environments_do_not_affect_each_other() -> None:
    few, many = make_vector(2, acceptance="rejection"), make_vector(6, acceptance="rejection")
    np.testing.assert_array_equal(few.reset(seed=5)[0], many.reset(seed=5)[0][:2])
    rng = np.random.default_rng(0)
    for _ in range(60):
        actions = rng.integers(0, 17, 6)
        np.testing.assert_array_equal(few.step(actions[:2])[0], many.step(actions)[0][:2])


def test_seeds() -> None:
    one, other = make_vector(3), make_vector(3)
    np.testing.assert_array_equal(one.reset(seed=4)[0], other.reset(seed=[4, 5, 6])[0])
    # Going on without a seed goes on with the same generators; None in a list leaves that one alone.
    np.testing.assert_array_equal(one.reset()[1]["sequence"], other.reset(seed=[None, None, None])[1]["sequence"])
    with pytest.raises(ConfigError, match="Expected 3 seeds, one an environment, got 2"):
        one.reset(seed=[1, 2])


def test_unseeded_environments_differ() -> None:
    first = [make_vector(8).reset()[1]["sequence"].tolist() for _ in range(3)]
    assert len({tuple(row) for row in first}) > 1  # 24 draws among 11 sequences: chance below 1e-16 otherwise


def test_sequences_can_be_picked() -> None:
    envs = make_vector(3)
    playable = envs.core.playable[:3]
    assert envs.reset(options={"sequence": playable})[1]["sequence"].tolist() == playable.tolist()
    assert envs.reset(options={"sequence": int(playable[1])})[1]["sequence"].tolist() == [playable[1]] * 3
    with pytest.raises(ConfigError, match="Expected one sequence index, or 3"):
        envs.reset(options={"sequence": [0, 1]})


def test_observations_stay_in_their_space() -> None:
    envs = make_vector(8)
    observations, _ = envs.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(100):
        assert observations in envs.observation_space
        observations, *_ = envs.step(rng.integers(0, 17, 8))


def test_returned_arrays_are_the_callers() -> None:
    one, other = make_vector(), make_vector()
    one.reset(seed=0)
    other.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(40):
        actions = rng.integers(0, 17, NUM_ENVS)
        spoiled, kept = one.step(actions), other.step(actions)
        np.testing.assert_array_equal(spoiled[0], kept[0])
        for array in (*spoiled[:4], *(spoiled[4][name] for name in STEP_KEYS)):
            array[:] = 0


def test_lambda_is_shared() -> None:
    envs = make_vector(reward="lambda_throughput")
    envs.reset(seed=0)
    envs.set_lambda({"fp16": 0.0, "nf4": 0.0})
    _, rewards, _, _, infos = envs.step(np.full(NUM_ENVS, 2))
    np.testing.assert_array_equal(rewards, infos["num_emitted"])


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="at least one environment, got num_envs=0"):
        make_vector(0)
    with pytest.raises(ConfigError, match="Expected render_mode None, got 'ansi'"):
        make_vector(render_mode="ansi")
    envs = make_vector(gamma_max=3)
    with pytest.raises(ConfigError, match=r"Expected reset\(\) before the first step"):
        envs.step(np.zeros(NUM_ENVS, np.int64))
    envs.reset(seed=0)
    wrong: list[tuple[NDArray[Any], str]] = [
        (np.full(NUM_ENVS, 4), "Expected actions from 0 to 3, got 4"),
        (np.full(NUM_ENVS, -1), "from 0 to 16, got -1"),
        (np.zeros(NUM_ENVS + 1, np.int64), r"got shape \(6,\)"),
        (np.zeros(NUM_ENVS), "of float64"),
    ]
    for actions, message in wrong:
        with pytest.raises(ConfigError, match=message):
            envs.step(actions)


@pytest.mark.parametrize("name", [GAMMA_SELECTION, DRAFT_STOPPING])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_autoreset_modes_are_those_of_gymnasium(name: str, mode: AutoresetMode) -> None:
    settings = arguments({"reward": "time"})
    ours = gym.make_vec(name, num_envs=NUM_ENVS, autoreset_mode=mode.value, **settings)
    assert ours.metadata["autoreset_mode"] is mode
    theirs = SyncVectorEnv([lambda: gym.make(name, **settings)] * NUM_ENVS, autoreset_mode=mode)
    np.testing.assert_array_equal(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(150):
        actions = rng.integers(0, ours.single_action_space.n, NUM_ENVS)  # type: ignore[attr-defined]
        mine, reference = ours.step(actions), theirs.step(actions)
        for one, other in zip(mine[:4], reference[:4], strict=True):
            np.testing.assert_array_equal(one, other)
        assert_same_infos(mine[4], reference[4])
        ended = mine[2] | mine[3]
        ends += int(ended.sum())
        if ended.any() and mode is AutoresetMode.DISABLED:
            options = {"reset_mask": ended}
            np.testing.assert_array_equal(ours.reset(options=options)[0], theirs.reset(options=dict(options))[0])
    assert ends > 5


def test_a_wrong_autoreset_mode_or_mask_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"among \['Disabled', 'NextStep', 'SameStep'\], got 'Nextstep'. Did you mean"
    ):
        make_vector(autoreset_mode="Nextstep")
    envs = make_vector(autoreset_mode="Disabled", budget=2)
    with pytest.raises(ConfigError, match="first reset"):
        envs.reset(options={"reset_mask": np.array([True, False, False, False, False])})
    envs.reset(seed=0)
    envs.step(np.zeros(NUM_ENVS, np.int64))
    with pytest.raises(ResetNeeded, match="have ended"):
        envs.step(np.zeros(NUM_ENVS, np.int64))
    with pytest.raises(ConfigError, match="reset_mask of 5 booleans"):
        envs.reset(options={"reset_mask": [1, 0]})
