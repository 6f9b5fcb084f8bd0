# SPDX-License-Identifier: Apache-2.0
"""Rewards: hand-computed values, the registry, and lambda."""

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from speckv import envs
from speckv.cost import CompiledCost
from speckv.envs import GammaSelectionEnv
from speckv.envs.rewards import REWARDS, Reward, make_reward
from speckv.errors import ConfigError
from speckv.replay import ReplayStep
from speckv.types import IntArray
from tests.fakes_traces import make_cost_table, random_traces

COST = CompiledCost(make_cost_table(), ("fp16", "nf4"))
BOTH = np.array([0, 1])


def make_step(
    num_emitted: tuple[int, int] = (3, 2), num_drafted: tuple[int, int] = (4, 4), context: tuple[int, int] = (64, 64)
) -> ReplayStep:
    """Two steps of 16 and 8 seconds; plain decoding takes 8 and 4 seconds a token at context 64."""
    none: IntArray = np.zeros(2, np.int64)
    return ReplayStep(
        num_drafted=np.array(num_drafted),
        num_accepted=none,
        num_tested=none,
        num_emitted=np.array(num_emitted),
        seconds=np.array([16.0, 8.0]),
        context=np.array(context),
        terminated=none > 0,
        truncated=none > 0,
    )


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("throughput", {}, [3 * 8 / 16, 2 * 4 / 8]),
        ("time", {}, [-16 / 8, -8 / 4]),
        ("tokens", {}, [3, 2]),
        # Lambda starts at plain decoding's throughput, 1/8 and 1/4 tokens a second.
        ("lambda_throughput", {}, [3 - 16 / 8, 2 - 8 / 4]),
        ("lambda_throughput", {"rate": 0.25}, [3 - 4, 2 - 2]),
        ("lambda_throughput", {"rate": {"nf4": 0.5}}, [3 - 2, 2 - 4]),
        ("tokens_minus_cost", {"token_cost": 0.5}, [3 - 2, 2 - 2]),
        # A draft pass takes a second: worth 1/8 and 1/4 tokens.
        ("tokens_minus_cost", {"token_cost": "auto"}, [3 - 0.5, 2 - 1]),
        ("tokens_minus_cost", {"rate": 0.5}, [3 - 2, 2 - 2]),
    ],
)
def test_values(name: str, options: dict[str, float], expected: list[float]) -> None:
    assert make_reward(name, COST, options)(make_step(), BOTH).tolist() == expected


def test_throughput_compares_at_the_same_context() -> None:
    rewards = make_reward("throughput", COST, None)(make_step(context=(64, 1088)), BOTH)
    assert rewards.tolist() == [1.5, 2 * 5 / 8]  # 1,024 tokens later plain decoding takes one second more


def test_plain_decoding_earns_one_token_a_token() -> None:
    env = GammaSelectionEnv(traces=random_traces(), cost=make_cost_table(), reward="throughput")
    env.reset(seed=0)
    assert env.step(np.int64(0))[1] == pytest.approx(1.0)


def test_time_adds_up_to_the_episodes() -> None:
    env = GammaSelectionEnv(traces=random_traces(), cost=make_cost_table(), reward="time", compressions=["nf4"])
    env.reset(seed=0)
    total = 0.0
    info: dict[str, Any] = {}
    while "decode" not in info:
        _, reward, _, _, info = env.step(np.int64(3))
        total += float(reward)
    assert total == pytest.approx(-info["decode"]["seconds"] / 4.0)


def test_scale() -> None:
    rewards = []
    for scale in (1.0, -2.5):
        env = GammaSelectionEnv(traces=random_traces(), cost=make_cost_table(), reward="tokens", reward_scale=scale)
        env.reset(seed=3)
        rewards.append(env.step(np.int64(2))[1])
    assert rewards[1] == -2.5 * float(rewards[0])


def test_set_lambda() -> None:
    reward = make_reward("lambda_throughput", COST, {})
    reward.set_lambda({"fp16": 0.5})
    assert reward(make_step(), BOTH).tolist() == [3 - 8, 2 - 2]
    with pytest.raises(ConfigError, match=r"got int8: 1\.0"):
        reward.set_lambda({"int8": 1.0})
    with pytest.raises(ConfigError, match=r"got nf4: -1\.0"):
        reward.set_lambda({"nf4": -1.0})


def test_set_lambda_through_the_environment() -> None:
    env = GammaSelectionEnv(traces=random_traces(), cost=make_cost_table(), reward="lambda_throughput")
    env.reset(seed=0)
    env.set_lambda({"fp16": 0.0, "nf4": 0.0})
    _, reward, _, _, info = env.step(np.int64(2))
    assert reward == info["num_emitted"]


@pytest.mark.parametrize("name", ["throughput", "time", "tokens"])
def test_rewards_without_lambda_say_so(name: str) -> None:
    with pytest.raises(ConfigError, match="Expected a reward with a lambda"):
        make_reward(name, COST, None).set_lambda({"fp16": 1.0})


def run_for(reward: Reward, steps: int) -> None:
    for _ in range(steps):
        reward(make_step(), BOTH)


@pytest.mark.parametrize("name", ["lambda_throughput", "tokens_minus_cost"])
def test_lambda_follows_what_is_achieved(name: str) -> None:
    reward = make_reward(name, COST, {"decay": 0.5})
    first = reward(make_step(), BOTH).tolist()
    assert first == make_reward(name, COST, {})(make_step(), BOTH).tolist()  # valued before lambda moves
    # Lambda is now (0.5 / 8 + 3) / (0.5 + 16) and (0.5 / 4 + 2) / (0.5 + 8), and goes to 3 / 16 and 2 / 8.
    second = reward(make_step(), BOTH)
    rates = np.array([3.0625 / 16.5, 2.125 / 8.5])
    expected = [3, 2] - rates * ([16, 8] if name == "lambda_throughput" else [4, 4])
    np.testing.assert_allclose(second, expected)
    run_for(reward, 60)
    limit = [3, 2] - np.array([3 / 16, 2 / 8]) * ([16, 8] if name == "lambda_throughput" else [4, 4])
    np.testing.assert_allclose(reward(make_step(), BOTH), limit, atol=1e-12)


def test_lambda_waits_for_its_compression() -> None:
    reward = make_reward("lambda_throughput", COST, {"decay": 0.5})
    for _ in range(30):
        reward(make_step(), np.array([0, 0]))
    # No step of nf4 was seen: its lambda is still plain decoding's.
    assert reward(make_step(), BOTH)[1] == pytest.approx(2 - 8 / 4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("throughputs", None, "got 'throughputs'. Did you mean 'throughput'"),
        ("throughput", {"rate": 1.0}, "only options of the reward 'throughput', got {'rate': 1.0}"),
        ("lambda_throughput", {"decay": 1.0}, "Expected a decay above 0 and below 1"),
        ("lambda_throughput", {"rate": float("inf")}, "Expected tokens a second"),
        ("tokens_minus_cost", {"token_cost": "automatic"}, "or 'auto', got 'automatic'"),
        ("tokens_minus_cost", {"token_cost": -0.5}, "or 'auto', got -0.5"),
    ],
)
def test_refusals(name: str, options: dict[str, float] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_reward(name, COST, options)


def test_every_reward_has_a_row_in_the_environments_docstring() -> None:
    text = GammaSelectionEnv.__doc__ or ""
    assert all(f"`{name}`" in text for name in REWARDS)


def tokens_less_time(step: ReplayStep, plain_s: np.ndarray) -> np.ndarray:
    """A user's reward: tokens, less those of plain decoding in the same time."""
    return np.asarray(step.num_emitted - step.seconds / plain_s)


@pytest.mark.parametrize("reward", [tokens_less_time, "own_reward_of_a_user:tokens_less_time"])
def test_a_reward_of_ones_own(reward: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def tokens_less_time(step, plain_s):\n    return step.num_emitted - step.seconds / plain_s\n"
    (tmp_path / "own_reward_of_a_user.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    made = make_reward(reward, COST, None)
    np.testing.assert_allclose(made(make_step(), BOTH), [3 - 16 / 8, 2 - 8 / 4])
    with pytest.raises(ConfigError, match="without reward_options"):
        make_reward(reward, COST, {"rate": 1.0})


def test_the_environments_take_a_reward_of_ones_own() -> None:
    settings: dict[str, Any] = {"traces": random_traces(), "cost": make_cost_table(), "split": None}
    for name in (envs.GAMMA_SELECTION, envs.DRAFT_STOPPING):
        vector = gym.make_vec(name, num_envs=3, reward=tokens_less_time, **settings)
        vector.reset(seed=0)
        _, rewards, _, _, infos = vector.step(np.array([0, 0, 0]))
        assert (rewards < infos["num_emitted"]).all()


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("no_such_module_here:f", "got ModuleNotFoundError.*in the folder of the module"),
        ("math:no_such", "Expected 'no_such' in module math"),
        ("math:pi", "Expected a function"),
        (lambda *_: 1.0, r"2 finite numbers, got shape \(\)"),
        (lambda *_: np.array([1.0, np.nan]), "got NaN or infinity"),
    ],
)
def test_a_wrong_reward_is_refused(reward: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_reward(reward, COST, None)(make_step(), BOTH)
