# SPDX-License-Identifier: Apache-2.0
"""PPO learns a toy where looking pays, and its export decides as it does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv

from speckv.agents.rl.export import export_policy
from speckv.agents.rl.hyperparameters import PPOSettings
from speckv.agents.rl.learners import WithoutBootstrap, build_learner, make_learner, measure_normalisation
from speckv.agents.runs.environments import make_environment
from speckv.agents.runs.settings import EnvSettings, RewardSettings
from speckv.agents.runs.task import Validator
from speckv.envs.sb3_bridge import SB3VecEnv
from speckv.errors import SchemaError
from speckv.evaluation.replays import tune_fixed
from speckv.observation import SCHEMA, STOPPING_SCHEMA
from speckv.runtime import MlpPolicy, PolicyController
from speckv.runtime.learned import controller_of
from speckv.runtime.policy import load_controller
from speckv.types import StoppingController
from tests.fakes_policies import store
from tests.fakes_runs import toy_traces
from tests.fakes_settings import shipped
from tests.fakes_traces import make_cost_table

TINY = shipped(PPOSettings, num_envs=8, num_steps=16, batch_size=64, hidden=(16, 16), normalisation_steps=256)


def toy_env(num_envs: int = 8, reward: str = "throughput") -> SB3VecEnv:
    traces = toy_traces().select(split="train")
    return make_environment(
        traces, make_cost_table(), shipped(EnvSettings), shipped(RewardSettings, name=reward), num_envs
    )


@pytest.mark.slow
def test_ppo_beats_the_best_constant_where_signals_tell_easy_from_hard() -> None:
    """Easy prompts want a large gamma, hard ones 0; the best constant must serve both."""
    traces, cost = toy_traces(), make_cost_table()
    train, test = traces.select(split="train"), traces.select(split="test")
    settings = shipped(
        PPOSettings, num_envs=64, num_steps=16, batch_size=512, hidden=(32, 32), normalisation_steps=2000
    )
    env = make_environment(train, cost, shipped(EnvSettings), shipped(RewardSettings), settings.num_envs)
    model = build_learner(settings, env, seed=0)
    validator = Validator(test, cost, tune_fixed(train, cost).best())
    before = validator.score(controller_of(export_policy(model)))
    model.learn(25_000)
    after = validator.score(controller_of(export_policy(model)))
    assert after.speedup_vs_best_fixed > 1.15 > before.speedup_vs_best_fixed
    assert after.speedup_vs_ar > 1.3


@pytest.mark.slow
def test_ppo_learns_to_stop_token_by_token() -> None:
    traces, cost = toy_traces(), make_cost_table()
    train, test = traces.select(split="train"), traces.select(split="test")
    settings = shipped(
        PPOSettings, num_envs=64, num_steps=32, batch_size=512, hidden=(32, 32), discount=0.97, normalisation_steps=2000
    )
    token_by_token = shipped(EnvSettings, decides="per_token")
    env = make_environment(
        train, cost, token_by_token, shipped(RewardSettings, name="lambda_throughput"), settings.num_envs
    )
    model = build_learner(settings, env, seed=0)
    validator = Validator(test, cost, tune_fixed(train, cost).best())
    # Tokens a second, near what is achieved: a lambda twice as high makes time so dear that drafting never pays.
    env.envs.set_lambda({"fp16": 0.17, "nf4": 0.27})
    model.learn(40_000)
    controller = controller_of(export_policy(model))
    assert isinstance(controller, StoppingController)
    score = validator.score(controller)
    assert score.speedup_vs_best_fixed > 1.1
    assert score.speedup_vs_ar > 1.2


def test_a_stopping_policy_survives_the_disk_and_answers_alone_as_among_others(tmp_path: Path) -> None:
    env = make_environment(
        toy_traces().select(split="train"),
        make_cost_table(),
        shipped(EnvSettings, decides="per_token", gamma_max=9),
        shipped(RewardSettings, name="time"),
        8,
    )
    policy = export_policy(build_learner(TINY, env, seed=2), gamma_max=9)
    assert isinstance(policy, MlpPolicy)
    assert policy.environment == "SpecKV/DraftStopping-v0"
    store(tmp_path, controller_of(policy))
    controller = load_controller(tmp_path)
    assert isinstance(controller, StoppingController)
    rng = np.random.default_rng(0)
    schema = STOPPING_SCHEMA
    rows = rng.uniform(schema.low, schema.high, (200, schema.size)).astype(np.float32)
    before = np.ascontiguousarray(rows[:, : SCHEMA.size])
    assert set(controller.act_batch(before).tolist()) <= {0, 9}
    assert [controller.act(row) for row in before] == controller.act_batch(before).tolist()
    assert [controller.go_on(row) for row in rows] == controller.go_on_batch(rows).tolist()
    with pytest.raises(SchemaError, match="17 observation fields"):
        controller.act(rows[0])


def test_export_decides_as_the_learner_does() -> None:
    """10,000 random observations; only scores that agree to rounding may be told apart differently."""
    model = build_learner(TINY, toy_env(), seed=1)
    model.learn(256)
    controller = controller_of(export_policy(model))
    assert isinstance(controller, PolicyController)
    rng = np.random.default_rng(0)
    rows = (SCHEMA.low + rng.random((10_000, SCHEMA.size)) * (SCHEMA.high - SCHEMA.low)).astype(np.float32)
    chosen = controller.act_batch(rows)
    assert isinstance(model.policy, ActorCriticPolicy)
    with torch.no_grad():
        distribution = model.policy.get_distribution(torch.from_numpy(rows)).distribution
        assert isinstance(distribution, torch.distributions.Categorical)
        logits = distribution.logits.numpy()
    learner, _ = model.predict(rows, deterministic=True)
    top_two = np.sort(logits, axis=1)[:, -2:]
    clear = top_two[:, 1] - top_two[:, 0] > 1e-4
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(chosen[clear], learner[clear])
    # Scores differ from the learner's log-probabilities by a constant a row.
    shifted = controller.scores(rows) - logits
    np.testing.assert_allclose(shifted, np.broadcast_to(shifted[:, :1], shifted.shape), atol=2e-4)
    assert [controller.act(row) for row in rows[:200][clear[:200]]] == chosen[:200][clear[:200]].tolist()


def test_constant_features_are_not_blown_up() -> None:
    env = toy_env()
    mean, std = measure_normalisation(env, 500, seed=0)
    constant = SCHEMA.index("draft_lag")
    assert (std > 0).all()
    assert std[SCHEMA.index("bits_per_weight")] < 1.0
    one = make_environment(
        toy_traces().select(compressions=["nf4"]), make_cost_table(), shipped(EnvSettings), shipped(RewardSettings), 8
    )
    mean, std = measure_normalisation(one, 500, seed=0)
    ratio = SCHEMA.index("cost_ratio")
    # nf4: draft 1 s over verify 4 s.
    assert (mean[ratio], std[ratio]) == (0.25, 1.0)
    assert std[constant] < 1.0


def test_same_seed_same_parameters() -> None:
    def parameters(seed: int) -> list[np.ndarray]:
        model = build_learner(TINY, toy_env(), seed=seed)
        model.learn(256)
        return [p.detach().numpy().copy() for p in model.policy.parameters()]

    first, again, other = parameters(0), parameters(0), parameters(1)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not all((a == b).all() for a, b in zip(first, other, strict=True))


def test_hiding_truncation_changes_nothing_at_discount_zero() -> None:
    def parameters(env: VecEnv, *, hide: bool) -> list[np.ndarray]:
        mean, std = measure_normalisation(env, 256, seed=9)
        model = make_learner(TINY, env, seed=0, mean=mean, std=std)
        if not hide:
            assert isinstance(model.env, WithoutBootstrap)
            model.env = model.env.venv
        model.learn(512)
        return [p.detach().numpy().copy() for p in model.policy.parameters()]

    pairs = zip(parameters(toy_env(), hide=True), parameters(toy_env(), hide=False), strict=True)
    assert all((a == b).all() for a, b in pairs)


def test_truncation_reaches_a_learner_that_looks_ahead() -> None:
    mean, std = np.zeros(SCHEMA.size, np.float32), np.ones(SCHEMA.size, np.float32)
    model = make_learner(replace(TINY, discount=1.0), toy_env(), seed=0, mean=mean, std=std)
    assert isinstance(model.env, SB3VecEnv)
