# SPDX-License-Identifier: Apache-2.0
"""Every learner solves a toy with a known optimum, and what it exports decides as it does."""

from dataclasses import replace

import numpy as np
import pytest
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.base_class import BaseAlgorithm

from speckv.agents.registry import agent_settings
from speckv.agents.rl.export import export_policy
from speckv.agents.rl.hyperparameters import LearnerSettings
from speckv.agents.rl.learners import build_learner, explore, falling
from speckv.agents.runs.environments import make_environment
from speckv.agents.runs.settings import EnvSettings, RewardSettings
from speckv.cost import CompiledCost, CostTable
from speckv.errors import ConfigError
from speckv.observation import SCHEMA, STOPPING_SCHEMA
from speckv.replay import CompiledTraces, replay_controller, replay_fixed
from speckv.runtime import MlpPolicy, PolicyController
from speckv.runtime.learned import LstmController, LstmPolicy, controller_of
from speckv.traces import TraceSet
from speckv.types import FloatArray, StoppingController
from tests.fakes_settings import shipped
from tests.fakes_traces import compile_both, make_cost_table, make_sequence, make_traces

LENGTH, GAMMA_MAX = 160, 6
QUICK: dict[str, dict[str, object]] = {
    "a2c": {"num_envs": 64, "num_steps": 8},
    "dqn": {"num_envs": 64, "num_steps": 4, "batch_size": 512, "learning_starts": 1000, "target_interval": 512},
    "ppo": {"num_envs": 64, "num_steps": 16, "batch_size": 256},
    "qr_dqn": {"num_envs": 64, "num_steps": 4, "learning_starts": 1000, "target_interval": 512, "num_quantiles": 8},
    "recurrent_ppo": {"num_envs": 64, "num_steps": 8, "batch_size": 256, "lstm_hidden": 16, "hidden": [16]},
}
STEPS = {"a2c": 18_000, "dqn": 18_000, "ppo": 18_000, "qr_dqn": 18_000, "recurrent_ppo": 25_000}
STEPS_PER_TOKEN = {"a2c": 20_000, "dqn": 30_000, "qr_dqn": 20_000}


def all_or_nothing() -> TraceSet:
    """At fp16 every drafted token is accepted, at nf4 none."""
    sequences = [
        make_sequence(np.full(LENGTH, hits), compression=compression, prompt_id=f"p{number}", seed=number)
        for compression, hits in (("fp16", 1), ("nf4", 0))
        for number in range(6)
    ]
    return make_traces(sequences, max_new_tokens=LENGTH)


def times(decides: str) -> CostTable:
    """Once a step, a wide verify pass at fp16 costs so much that a middling gamma is best there."""
    table = make_cost_table()
    if decides == "per_token":
        return table
    fp16 = replace(table.entries["fp16"], verify_s=(8.0, 8.5, 80.0))
    return replace(table, entries={**table.entries, "fp16": fp16})


def quick(name: str, **changes: object) -> LearnerSettings:
    options: dict[str, object] = {"hidden": [32], "normalisation_steps": 1000, "total_steps": STEPS[name]}
    _, settings = agent_settings({"name": name, **options, **QUICK[name], **changes})
    assert isinstance(settings, LearnerSettings)
    return settings


def learner(settings: LearnerSettings, *, decides: str = "per_step", seed: int = 0) -> BaseAlgorithm:
    reward = "throughput" if decides == "per_step" else "lambda_throughput"
    how = shipped(EnvSettings, decides=decides, gamma_max=GAMMA_MAX)
    env = make_environment(
        all_or_nothing(), times(decides), how, shipped(RewardSettings, name=reward), settings.num_envs
    )
    if decides == "per_token":
        env.envs.set_lambda({compression: bound(compression, decides) for compression in ("fp16", "nf4")})
    return build_learner(settings, env, seed)


def compiled(compression: str, decides: str) -> tuple[CompiledTraces, CompiledCost]:
    return compile_both(all_or_nothing().select(compressions=[compression]), times(decides))


def bound(compression: str, decides: str) -> float:
    """Greatest throughput of any constant, which nothing beats where all tokens or none are accepted."""
    return max(replay_fixed(*compiled(compression, decides), gamma).throughput for gamma in range(GAMMA_MAX + 1))


def share_of_best(model: BaseAlgorithm, decides: str) -> dict[str, float]:
    """Throughput over the greatest, at each compression."""
    controller = controller_of(export_policy(model, gamma_max=GAMMA_MAX))
    shares = {}
    for compression in ("fp16", "nf4"):
        record = replay_controller(controller, *compiled(compression, decides))
        shares[compression] = record.throughput / bound(compression, decides)
    return shares


def test_the_toy_wants_a_middling_gamma_here_and_none_there() -> None:
    best = {}
    for compression in ("fp16", "nf4"):
        both = compiled(compression, "per_step")
        best[compression] = max(range(17), key=lambda gamma, both=both: replay_fixed(*both, gamma).throughput)  # type: ignore[misc]
    assert best == {"fp16": 4, "nf4": 0}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(QUICK))
def test_every_learner_finds_the_optimum_once_a_step(name: str) -> None:
    model = learner(quick(name))
    model.learn(STEPS[name], log_interval=10**9)
    assert min(share_of_best(model, "per_step").values()) > 0.98


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS_PER_TOKEN)
def test_every_learner_without_a_memory_finds_the_optimum_token_by_token(name: str) -> None:
    steps = STEPS_PER_TOKEN[name]
    changes: dict[str, object] = {"discount": 0.97, "total_steps": steps}
    changes |= {"entropy_coef": 0.0} if name == "a2c" else {"buffer_size": 10_000}
    model = learner(quick(name, **changes), decides="per_token")
    model.learn(steps, log_interval=10**9)
    assert min(share_of_best(model, "per_token").values()) > 0.98


def random_rows(schema_low: FloatArray, schema_high: FloatArray, count: int, seed: int = 0) -> FloatArray:
    rng = np.random.default_rng(seed)
    return (schema_low + rng.random((count, len(schema_low))) * (schema_high - schema_low)).astype(np.float32)


@pytest.mark.parametrize("name", ["a2c", "dqn", "ppo", "qr_dqn"])
@pytest.mark.parametrize("decides", ["per_step", "per_token"])
def test_an_export_decides_as_the_learner_does(name: str, decides: str) -> None:
    model = learner(quick(name, total_steps=2048), decides=decides, seed=3)
    model.learn(2048, log_interval=10**9)
    policy = export_policy(model)
    assert isinstance(policy, MlpPolicy)
    schema = SCHEMA if decides == "per_step" else STOPPING_SCHEMA
    rows = random_rows(schema.low, schema.high, 5000)
    expected, _ = model.predict(rows, deterministic=True)
    scores = PolicyController(policy).scores(rows)
    top_two = np.sort(scores, axis=1)[:, -2:]
    clear = top_two[:, 1] - top_two[:, 0] > 1e-4
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(scores.argmax(axis=1)[clear], expected[clear])
    assert policy.name == name.replace("_", "-") + ("-stopping" if decides == "per_token" else "")
    assert isinstance(controller_of(policy), StoppingController) == (decides == "per_token")


def test_a_recurrent_export_decides_as_the_learner_does_all_along_a_sequence() -> None:
    model = learner(quick("recurrent_ppo", total_steps=2048), seed=3)
    model.learn(2048)
    assert isinstance(model, RecurrentPPO)
    policy = export_policy(model)
    assert isinstance(policy, LstmPolicy)
    controller, count = LstmController(policy), 50
    controller.start(count)
    state: tuple[np.ndarray, ...] | None = None
    agreed = []
    for step in range(40):
        rows = random_rows(SCHEMA.low, SCHEMA.high, count, seed=step)
        starts = np.full(count, step == 0)
        expected, state = model.predict(rows, state=state, episode_start=starts, deterministic=True)
        agreed.append(controller.act_batch(rows) == expected)
        assert state is not None
        np.testing.assert_allclose(controller._hidden, state[0][0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(controller._cell, state[1][0], rtol=1e-4, atol=1e-5)
    # Of 2000 decisions, scores that agree to rounding may be told apart differently.
    assert np.mean(agreed) > 0.999


def test_each_environment_explores_for_itself() -> None:
    actions = np.full(10_000, 3)
    assert explore(actions, 17, 0.0).tolist() == actions.tolist()
    changed = explore(actions, 17, 0.5)
    # 10,000 draws, 0.5 * 16 / 17 = 0.47 of them differ; six deviations are 0.03.
    assert abs((changed != 3).mean() - 0.47) < 0.03
    assert set(changed.tolist()) == set(range(17))


def test_the_learning_rate_never_turns_negative() -> None:
    """The last rollout may go beyond the run's end; a negative rate would climb the loss there."""
    rate = falling(0.1)
    assert [rate(1.0), rate(0.5), rate(0.0), rate(-0.01)] == [0.1, 0.05, 0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "dqn", "buffer_size": 100}, "agent.buffer_size of at least one step of each environment, 256"),
        ({"name": "dqn", "target_interval": 255}, "agent.target_interval"),
        ({"name": "dqn", "exploration_fraction": 0.0}, "agent.exploration_fraction above 0"),
        ({"name": "dqn", "final_exploration": 1.5}, "agent.final_exploration from 0 to 1"),
        ({"name": "dqn", "learning_starts": -1}, "agent.learning_starts 0 or more"),
        ({"name": "dqn", "discount": 2.0}, "agent.discount from 0 to 1"),
        ({"name": "dqn", "clip_range": 0.2}, "Unknown setting 'agent.clip_range'"),
        ({"name": "qr_dqn", "num_quantiles": 0}, "agent.num_quantiles 1 or more"),
        ({"name": "qr_dqn", "gradient_steps": 0}, "agent.gradient_steps 1 or more"),
        ({"name": "a2c", "learning_rate": 0.0}, "agent.learning_rate above 0"),
        ({"name": "a2c", "num_envs": 1, "num_steps": 1}, "rollout of at least 2 steps"),
        ({"name": "recurrent_ppo", "lstm_hidden": 0}, "agent.lstm_hidden 1 or more"),
        ({"name": "recurrent_ppo", "batch_size": 3000}, "to divide a rollout"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        agent_settings(options)
