# SPDX-License-Identifier: Apache-2.0
"""The scalar environment: Gymnasium's own check, episodes against the recordings, and refusals."""

import pickle
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from speckv import envs
from speckv.envs import GAMMA_SELECTION, GammaSelectionEnv
from speckv.errors import ConfigError, CostTableError, TraceError
from speckv.observation import SCHEMA
from tests.fakes_traces import make_cost_table, make_sequence, make_traces, random_traces

TRACES = random_traces()
COST = make_cost_table()


def make_env(**settings: Any) -> GammaSelectionEnv:
    arguments: dict[str, Any] = {"traces": TRACES, "cost": COST} | settings
    return GammaSelectionEnv(**arguments)


def play(env: GammaSelectionEnv, gammas: np.random.Generator | int) -> tuple[list[dict[str, Any]], bool, bool]:
    infos, terminated, truncated = [], False, False
    while not (terminated or truncated):
        gamma = gammas if isinstance(gammas, int) else int(gammas.integers(0, 17))
        _, _, terminated, truncated, info = env.step(np.int64(gamma))
        infos.append(info)
    return infos, terminated, truncated


@pytest.mark.parametrize("reward", ["throughput", "time", "lambda_throughput", "tokens_minus_cost", "tokens"])
def test_gymnasiums_check(reward: str) -> None:
    # Long texts: the check wants an episode of more than one step.
    traces = make_traces([make_sequence([1, 0] * 30, prompt_id=f"p{k}") for k in range(4)], max_new_tokens=60)
    env = gym.make(GAMMA_SELECTION, traces=traces, cost=COST, reward=reward, render_mode="ansi")
    check_env(env.unwrapped)


@pytest.mark.parametrize("acceptance", ["recorded", "rejection"])
def test_gymnasiums_check_when_acceptances_are_drawn(acceptance: str) -> None:
    sequences = [make_sequence([1, 0] * 30, accept_prob=np.full(60, 0.6, np.float32))]
    traces = make_traces(sequences, max_new_tokens=60, sampled=True)
    check_env(
        gym.make(GAMMA_SELECTION, traces=traces, cost=COST, acceptance=acceptance).unwrapped, skip_render_check=True
    )


def test_registered_environment_is_never_cut_by_steps() -> None:
    spec = gym.spec(GAMMA_SELECTION)
    assert spec.max_episode_steps is None
    assert not spec.nondeterministic


@given(seed=st.integers(0, 2**16))
def test_an_episode_emits_its_text(seed: int) -> None:
    env = make_env()
    _, start = env.reset(seed=seed)
    sequence = env.traces.sequences[start["sequence"]]
    assert (start["prompt_id"], start["task"], start["compression"]) == (
        sequence.prompt_id,
        sequence.task,
        sequence.compression,
    )
    infos, terminated, truncated = play(env, np.random.default_rng(seed))
    assert sum(info["num_emitted"] for info in infos) == len(sequence.tokens) - 1
    assert (terminated, truncated) == (sequence.finish == "eos", sequence.finish == "length")
    sums = infos[-1]["decode"]
    for name in ("num_drafted", "num_accepted", "seconds"):
        assert sums[name] == pytest.approx(sum(info[name] for info in infos))
    assert sums["num_steps"] == len(infos)
    assert sums["num_tokens"] == len(sequence.tokens) - 1


def test_sums_start_anew() -> None:
    env = make_env()
    for _ in range(2):
        env.reset(seed=1)
        infos, _, _ = play(env, 2)
        assert infos[-1]["decode"]["num_steps"] == len(infos)


def test_same_seed_same_sequences() -> None:
    def order(seed: int) -> list[int]:
        env = make_env()
        return [env.reset(seed=seed if k == 0 else None)[1]["sequence"] for k in range(20)]

    assert order(4) == order(4)
    assert order(4) != order(5)


def test_every_playable_sequence_is_drawn() -> None:
    traces = make_traces(
        [make_sequence([1] * n, prompt_id=f"p{n}", finish="eos") for n in (1, 2, 3, 4)], max_new_tokens=9
    )
    env = make_env(traces=traces)
    env.reset(seed=0)
    # Each of three sequences is missed by 60 uniform draws with a chance below 3e-11; the one-token text has no step.
    assert {env.reset()[1]["sequence"] for _ in range(60)} == {1, 2, 3}


def test_sequence_can_be_picked() -> None:
    env = make_env()
    assert env.reset(seed=0, options={"sequence": 3})[1]["sequence"] == 3
    observation, _ = env.reset(options={"sequence": 2})
    entropy, confidence = env.traces.sequences[2].target_signals[0, :2]
    assert observation[SCHEMA.index("target_entropy")] == entropy
    assert observation[SCHEMA.index("target_confidence")] == confidence


def test_selection() -> None:
    assert {s.split for s in make_env().traces.sequences} == {"train"}
    assert {s.split for s in make_env(split=None).traces.sequences} == {"train", "test"}
    chosen = make_env(compressions=["nf4"], tasks=["chat"], split="test").traces
    assert (chosen.compressions, chosen.tasks) == (("nf4",), ("chat",))


def test_smaller_gamma_max() -> None:
    env = make_env(gamma_max=4)
    assert env.action_space == gym.spaces.Discrete(5)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"Expected an action in Discrete\(5\), got"):
        env.step(np.int64(5))


def test_deciding_costs_the_tables_time() -> None:
    seconds = []
    for controller_s in (0.0, 0.25):
        env = make_env(cost=make_cost_table(controller_s=controller_s))
        env.reset(seed=0)
        seconds.append(env.step(np.int64(3))[4]["seconds"])
    assert seconds[1] == seconds[0] + 0.25


def test_loads_by_path(tmp_path: Path) -> None:
    TRACES.save(tmp_path / "traces.parquet")
    COST.save(tmp_path / "costs.json")
    env = make_env(traces=tmp_path / "traces.parquet", cost=tmp_path / "costs.json")
    np.testing.assert_array_equal(env.reset(seed=0)[0], make_env().reset(seed=0)[0])


def test_returned_observations_are_the_callers() -> None:
    env = make_env()
    observation, _ = env.reset(seed=0)
    kept = observation.copy()
    observation[:] = 0
    np.testing.assert_array_equal(env.reset(seed=0)[0], kept)


def test_gymnasiums_statistics_fit_on_top() -> None:
    env = RecordEpisodeStatistics(gym.make(GAMMA_SELECTION, traces=TRACES, cost=COST))
    env.reset(seed=0)
    info: dict[str, Any] = {}
    while "episode" not in info:
        *_, info = env.step(np.int64(3))
    assert info["episode"]["r"] == pytest.approx(info["decode"]["return"])
    assert info["episode"]["l"] == info["decode"]["num_steps"]


def test_survives_pickling_mid_episode() -> None:
    env = make_env()
    env.reset(seed=0)
    env.step(np.int64(2))
    copy = pickle.loads(pickle.dumps(env))
    for action in (3, 0, 1):
        ours, theirs = env.step(np.int64(action)), copy.step(np.int64(action))
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:] == theirs[1:]


def test_rendering() -> None:
    traces = make_traces([make_sequence([1, 1, 0, 1, 1, 1], compression="nf4")], max_new_tokens=6)
    env = make_env(traces=traces, render_mode="ansi")
    env.reset(seed=0)
    assert env.render() == "nf4 p0: 1/6 tokens"
    env.step(np.int64(3))
    assert re.fullmatch(r"nf4 p0: 3/6 tokens, drafted \+-- in \d+\.\d ms", str(env.render()))
    with pytest.raises(ConfigError, match=r"among \['ansi', 'rgb_array'\], got 'human'"):
        make_env(render_mode="human")
    with pytest.warns(UserWarning, match="nothing is rendered"):
        assert make_env().render() is None


@pytest.mark.figures
@pytest.mark.parametrize("name", [envs.GAMMA_SELECTION, envs.DRAFT_STOPPING])
def test_a_picture_shows_accepted_and_rejected_tokens(name: str) -> None:
    traces = make_traces([make_sequence([1, 1, 0, 1, 1, 1], compression="nf4")], max_new_tokens=6)
    env = gym.make(name, traces=traces, cost=make_cost_table(), split=None, render_mode="rgb_array")
    with pytest.raises(ResetNeeded):
        env.unwrapped.render()
    env.reset(seed=0)
    colors = {"accepted": (0, 158, 115), "rejected": (213, 94, 0)}

    def shown() -> dict[str, int]:
        frame = np.asarray(env.render())
        assert frame.shape == (480, 800, 3)
        assert frame.dtype == np.uint8
        upper = frame[60:260]  # below the legend, above the curves
        return {key: int((upper == color).all(axis=-1).sum()) for key, color in colors.items()}

    assert shown() == {"accepted": 0, "rejected": 0}
    for action in [3] if name == envs.GAMMA_SELECTION else [1, 1, 1, 0]:
        env.step(np.int64(action))
    counts = shown()
    assert counts["rejected"] > 1.5 * counts["accepted"] > 1000  # one accepted, two rejected


@pytest.mark.parametrize("name", [envs.GAMMA_SELECTION, envs.DRAFT_STOPPING])
def test_the_shipped_recordings_are_the_default(name: str) -> None:
    env = gym.make(name)
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space
    assert info["compression"] in ("fp16", "int8", "nf4")
    vector = gym.make_vec(name, num_envs=2)
    vector.reset(seed=0)
    assert vector.step(np.array([1, 0]))[0] in vector.observation_space


@pytest.mark.parametrize("name", [envs.GAMMA_SELECTION, envs.DRAFT_STOPPING])
def test_stable_baselines3_makes_and_evaluates_it(name: str) -> None:
    arguments = {"traces": random_traces(max_new_tokens=8), "cost": make_cost_table(), "split": None}
    made = make_vec_env(name, n_envs=2, seed=0, env_kwargs=arguments)
    model = PPO("MlpPolicy", made, n_steps=8, batch_size=16, device="cpu").learn(16)
    assert np.isfinite(evaluate_policy(model, made, n_eval_episodes=2, warn=False)[0])
    assert made.get_attr("render_mode") == ["rgb_array", "rgb_array"]


def test_steps_need_a_running_episode() -> None:
    env = make_env()
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(np.int64(0))
    env.reset(seed=0)
    play(env, 16)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(np.int64(0))


@pytest.mark.parametrize("options", [{"sequence": 999}, {"sequence": -1}, {"sequence": [0, 1]}, {"sequence": "p0"}])
def test_unknown_sequences(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Expected one sequence index"):
        make_env().reset(options=options)


def test_unknown_reset_option() -> None:
    with pytest.raises(ConfigError, match=r"only the reset option 'sequence', got \['prompt'\]"):
        make_env().reset(options={"prompt": 1})


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"gamma_max": 17}, ConfigError, "gamma_max from 1 to the recording's 16, got 17"),
        ({"gamma_max": 0}, ConfigError, "gamma_max from 1 to the recording's 16, got 0"),
        ({"budget": 1000}, ConfigError, "budget from 2 to the recording's 40"),
        ({"acceptance": "sampled"}, ConfigError, "Expected acceptance to be one of"),
        ({"reward": "speed"}, ConfigError, "Expected a reward among"),
        ({"tasks": ["poetry"]}, TraceError, "No recorded sequence matches"),
        ({"traces": "no-such-trace"}, TraceError, "got 'no-such-trace'"),
        ({"cost": "no-such-table"}, CostTableError, "got 'no-such-table'"),
        ({"traces": random_traces(compressions=["int8"])}, CostTableError, r"cover \['int8'\]"),
        (
            {"traces": make_traces([make_sequence([1], finish="eos")], max_new_tokens=2)},
            TraceError,
            "one-token outputs",
        ),
    ],
)
def test_refusals(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_env(**settings)


def test_the_docstring_tabulates_every_feature() -> None:
    rows = re.findall(r"^ *\| (\d+) \|.*\| (\S+) \| (\S+) \| (\S+) \|$", GammaSelectionEnv.__doc__ or "", re.MULTILINE)
    fields = [(str(k), f.unit, f"{f.low:g}", f"{f.high:g}") for k, f in enumerate(SCHEMA.fields)]
    assert rows == fields


def test_clocks_are_drawn_anew_for_every_episode() -> None:
    ratio = SCHEMA.index("cost_ratio")
    env = make_env(clocks=5)
    seen: dict[float, float] = {}
    for seed in range(30):
        first, _ = env.reset(seed=seed, options={"sequence": int(env.core.playable[0])})
        observation, _, _, _, info = env.step(np.int64(0))
        assert observation[ratio] == first[ratio]
        plain, _ = seen.setdefault(float(first[ratio]), info["seconds"]), info
        assert plain == info["seconds"]
    assert 3 <= len(seen) <= 5
    assert len({round(value, 3) for value in seen}) == len(seen)
    with pytest.raises(ConfigError, match="clocks of 0 or more"):
        make_env(clocks=-1)


def test_one_clock_is_the_cost_table_itself() -> None:
    ratio = SCHEMA.index("cost_ratio")
    assert make_env().reset(seed=0)[0][ratio] in [np.float32(COST.cost_ratio(name)) for name in TRACES.compressions]
