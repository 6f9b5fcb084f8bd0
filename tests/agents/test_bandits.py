# SPDX-License-Identifier: Apache-2.0
"""Bandits: formulas by hand, regressions against the closed form, and learning where there is something to learn."""

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from speckv.agents.bandits.arms import ArmsSettings, Exp3Spec, GaussianThompson, Ucb1, UcbSettings, UcbSpec
from speckv.agents.bandits.hazard import HazardSettings
from speckv.agents.bandits.linear import (
    LastHidden,
    LinearSettings,
    NeuralLinear,
    NeuralLinearSettings,
    RidgeBank,
    revealed,
)
from speckv.agents.bandits.tapout import TapOutSettings
from speckv.agents.building import build_settings
from speckv.agents.registry import TrainingData, agent_settings, begin_learner, make_controller
from speckv.agents.rules.adaedl import AdaEdl, AdaEdlSettings
from speckv.agents.rules.base import StoppingRule
from speckv.agents.rules.svip import Svip, SvipSettings
from speckv.cost.times import StepTimes
from speckv.errors import ConfigError
from speckv.evaluation.replays import controller_sums, tune_fixed
from speckv.observation import SCHEMA
from speckv.replay import replay_controller, replay_stream
from speckv.runtime.constant import ConstantGamma
from speckv.runtime.network import Network
from speckv.types import OnlineLearner
from tests.fakes_runs import toy_traces
from tests.fakes_settings import shipped
from tests.fakes_traces import compile_both, make_cost_table, outcome, random_traces

TIMES = StepTimes.of(make_cost_table())
FP16 = np.zeros(SCHEMA.size, np.float32)
FP16[SCHEMA.index("bits_per_weight")] = 1.0


def test_rewards_are_speedups_over_plain_decoding() -> None:
    bandit = Ucb1(shipped(UcbSettings, arms=(0, 2)), TIMES, 0)
    # fp16's plain pass takes 8 s: 3 tokens in 12 s are 0.25 a second, twice plain decoding's 0.125.
    assert bandit.speedup(0, outcome(2, 2, seconds=12.0)) == pytest.approx(2.0)


def test_ucb1_follows_its_bound() -> None:
    bandit = Ucb1(shipped(UcbSettings, arms=(0, 2)), TIMES, 0)
    assert [bandit.act(FP16), bandit.act(FP16)] == [0, 0]  # nothing learned yet: the first arm stays untried
    bandit.learn(outcome(0, 0))
    assert bandit.act(FP16) == 2
    bandit.learn(outcome(2, 2))
    bandit.counts[0], bandit.means[0] = [10, 1], [1.0, 1.1]
    largest = max(1.0, 3 * 8.0 / (8.5 + 2 * 1.0))  # two tokens drafted: verify 8.5 s, drafts 1 s each
    bonus = [largest * math.sqrt(2 * math.log(11) / n) for n in (10, 1)]
    assert bandit.choose(0, FP16) == int(np.argmax([1.0 + bonus[0], 1.1 + bonus[1]]))
    bandit.counts[0], bandit.means[0] = [1000, 900], [3.0, 1.0]
    assert bandit.choose(0, FP16) == 0


def test_ucbspec_is_the_papers_bound() -> None:
    bandit = UcbSpec(shipped(UcbSettings, arms=(0, 2)), TIMES, 0)
    bandit.counts[0], bandit.means[0] = [30, 20], [2.0, 1.9]
    largest = 3 * 8.0 / (8.5 + 2 * 1.0)

    def bound(mean: float, n: int) -> float:
        return mean + largest / 2 * math.sqrt((1 + n) / n**2 * (1 + 2 * math.log(2 * 50**2 * math.sqrt(1 + n))))

    assert bandit.choose(0, FP16) == int(np.argmax([bound(2.0, 30), bound(1.9, 20)]))


def test_exp3_weighs_losses_by_the_chance_they_had() -> None:
    bandit = Exp3Spec(shipped(ArmsSettings, arms=(0, 2)), TIMES, 0)
    arm = bandit.choose(0, FP16)
    assert bandit._probability == pytest.approx(0.5)
    bandit.update(0, arm, FP16, outcome(0, 0))
    largest = 3 * 8.0 / (8.5 + 2 * 1.0)
    assert bandit.losses[0, arm] == pytest.approx((largest - 1.0) / largest / 0.5)


def test_each_compression_learns_for_itself() -> None:
    bandit = GaussianThompson(shipped(ArmsSettings, arms=(0, 2)), TIMES, 0)
    bandit.act(FP16)
    bandit.learn(outcome(0, 0))
    assert bandit.counts.tolist() == [[1, 0], [0, 0]]


def test_the_regressions_are_ridge_regressions() -> None:
    rng = np.random.default_rng(0)
    bank = RidgeBank(3, 4, ridge=2.0)
    inputs: list[list[Any]] = [[] for _ in range(3)]
    for _ in range(50):
        x, rows = rng.normal(size=4), np.flatnonzero(rng.random(3) < 0.6)
        y = rng.normal(size=len(rows))
        bank.update(rows, x, y)
        for row, value in zip(rows, y, strict=True):
            inputs[row].append((x, value))
    probe = rng.normal(size=4)
    mean, spread = bank.predict(probe)
    for number in range(3):
        x, y = (np.array(part) for part in zip(*inputs[number], strict=True))
        precision = x.T @ x + 2.0 * np.eye(4)
        assert mean[number] == pytest.approx(probe @ np.linalg.solve(precision, x.T @ y))
        assert spread[number] == pytest.approx(math.sqrt(probe @ np.linalg.solve(precision, probe)))


@pytest.mark.slow
@pytest.mark.parametrize("forget", [0.9, 0.99])
def test_forgetting_stays_sane_where_inputs_never_vary(forget: float) -> None:
    """Two features that always agree: one direction is never visited, and its variance must not run away."""
    bank = RidgeBank(1, 2, ridge=1.0, forget=forget)
    for _ in range(5000):
        bank.update(np.array([0]), np.array([1.0, 1.0]), np.array([1.0]))
        assert np.linalg.eigvalsh(bank.inverse[0]).min() > 0
    assert bank.predict(np.array([1.0, 1.0]))[0][0] == pytest.approx(1.0, abs=0.05)


@pytest.mark.slow
def test_forgetting_stays_exact_for_long() -> None:
    """What rounding leaves in the matrix grows by 1 / forget an update: 0.995 ** -12000 is 1e26."""
    rng, forget, number = np.random.default_rng(0), 0.995, 12_000
    bank = RidgeBank(1, 3, ridge=1.0, forget=forget)
    inputs, truth = rng.normal(size=(number, 3)), np.array([1.0, -2.0, 0.5])
    targets = inputs @ truth + rng.normal(size=number)
    for x, y in zip(inputs, targets, strict=True):
        bank.update(np.array([0]), x, np.array([y]))
    np.testing.assert_array_equal(bank.inverse[0], bank.inverse[0].T)
    weights = forget ** np.arange(number - 1, -1, -1.0)
    precision = (inputs * weights[:, None]).T @ inputs + forget**number * np.eye(3)
    expected = np.linalg.solve(precision, inputs.T @ (weights * targets))
    np.testing.assert_allclose(bank.weights[0], expected, rtol=1e-8)


def test_what_a_step_reveals() -> None:
    arms = np.array([0, 1, 3, 8])
    assert revealed(arms, 2, outcome(3, 1), "none") == [2]
    assert revealed(arms, 2, outcome(3, 1), "smaller") == [0, 1, 2]
    assert revealed(arms, 2, outcome(3, 1), "naive") == [0, 1, 2, 3]
    assert revealed(arms, 2, outcome(3, 3), "naive") == [0, 1, 2]
    assert revealed(arms, 2, outcome(2, 2), "smaller") == [2]  # cut by the budget: not what gamma 3 comes to


def test_learning_larger_gammas_from_rejections_alone_is_biased() -> None:
    """Every token is accepted with probability 0.8; gamma 2 is played, gamma 8 is only ever heard of.

    A rejection within two tokens tells what gamma 8 would have come to, but such steps are the bad ones. 4,000 steps:
    the standard error of either mean is below 0.05 tokens.
    """
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(0.2, 4000) - 1, 8)
    truth = float((lengths + 1).mean())
    heard = [length + 1 for length in lengths if length < 2]
    assert np.mean(heard) < truth - 2.0
    played = [min(length, 2) + 1 for length in lengths]
    smaller = [min(length, 1) + 1 for length in lengths]  # revealed by every step, not by the bad ones alone
    assert np.mean(smaller) == pytest.approx(1 + 0.8, abs=0.03)
    assert np.mean(played) == pytest.approx(1 + 0.8 + 0.64, abs=0.05)


def test_a_stream_of_one_kind_of_request_equals_requests_side_by_side() -> None:
    compiled, cost = compile_both(random_traces(num_prompts=5, seed=2))
    order = [3, 0, 4, 2, 1, *range(5, len(compiled))]
    stream = replay_stream(ConstantGamma(3), compiled, cost, order=order).take(np.argsort(order).tolist())
    together = replay_controller(ConstantGamma(3), compiled, cost)
    np.testing.assert_array_equal(stream.seconds, together.seconds)
    assert stream.prompt_ids == together.prompt_ids


@pytest.mark.parametrize("rule", [Svip(shipped(SvipSettings)), AdaEdl(shipped(AdaEdlSettings, threshold=0.3))])
def test_a_stream_asks_inside_steps_as_often_as_requests_side_by_side_are_asked(rule: StoppingRule) -> None:
    table = replace(make_cost_table(), controller_s=0.125)
    compiled, cost = compile_both(random_traces(num_prompts=6, seed=4), table)
    stream, together = replay_stream(rule, compiled, cost), replay_controller(rule, compiled, cost)
    np.testing.assert_array_equal(stream.seconds, together.seconds)
    np.testing.assert_array_equal(stream.gamma_counts, together.gamma_counts)
    assert len(set(np.flatnonzero(stream.gamma_counts.sum(axis=0)))) > 3


def speedup(name: str, options: dict[str, object]) -> float:
    """Over the best constants, on unseen easy and hard prompts that the signals tell apart."""
    traces, table = toy_traces(), make_cost_table()
    train, test = traces.select(split="train"), traces.select(split="test")
    _, settings = agent_settings({"name": name, **options})
    controller = make_controller(name, settings, TrainingData(train=train, cost=table, seed=0))
    assert isinstance(controller, OnlineLearner)
    compiled, cost = compile_both(test, table)
    sums = controller_sums(controller, compiled, cost)
    best = tune_fixed(train, table).best()
    fixed = tune_fixed(test, table).combine({c: best[c] for c in compiled.compression_names})
    return float(fixed.seconds.sum() / sums.seconds.sum())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("linucb", 1.08), ("lints", 1.08), ("hazard_thompson", 1.1)])
def test_contextual_bandits_beat_the_best_constant_where_signals_tell(name: str, least: float) -> None:
    assert speedup(name, {}) > least


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ucb1", "ucbspec", "thompson"])
def test_bandits_without_context_come_near_the_best_constant(name: str) -> None:
    assert speedup(name, {"arms": [0, 2, 8]}) > 0.85


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        (UcbSettings, {"width": -1.0}),
        (LinearSettings, {"side_information": "all"}),
        (LinearSettings, {"forget": 0.0}),
        (HazardSettings, {"gamma_max": 17}),
        (HazardSettings, {"probe": 1.5}),
        (NeuralLinearSettings, {"forget": 1.5}),
        (NeuralLinearSettings, {"hidden": []}),
        (TapOutSettings, {"level": "token"}),
        (TapOutSettings, {"gamma_max": 17}),
        (TapOutSettings, {"margin": 1.5}),
    ],
)
def test_settings_out_of_range_are_refused(settings: type[Any], options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="Expected agent"):
        build_settings(settings, {**asdict(shipped(settings)), **options}, "agent")


@pytest.mark.parametrize("arms", [(), (3, 1), (0, 17)])
def test_arms_out_of_range_are_refused(arms: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="ascending from 0 to 16"):
        Ucb1(shipped(UcbSettings, arms=arms), TIMES, 0)


def test_neural_linear_regresses_on_the_last_hidden_layer() -> None:
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((5, SCHEMA.size), (3, 5), (16, 3))]
    biases = [rng.normal(size=len(w)).astype(np.float32) for w in weights]
    features = LastHidden(Network(weights, biases))
    hidden = np.tanh(weights[1] @ np.tanh(weights[0] @ FP16 + biases[0]) + biases[1])
    np.testing.assert_allclose(features.features(FP16), [*hidden, 1.0], rtol=1e-5)
    bandit = NeuralLinear(shipped(NeuralLinearSettings, arms=(0, 2)), TIMES, features, 0)
    assert bandit.act(FP16) in (0, 2)
    bandit.learn(outcome(0, 0))
    assert bandit.bank.inverse.shape == (2, 4, 4)
    np.testing.assert_array_equal(features.features(FP16)[:3], bandit.features.features(FP16)[:3])


def test_a_learner_begins_knowing_nothing() -> None:
    data = TrainingData(train=random_traces(num_prompts=8).select(split="train"), cost=make_cost_table(), seed=0)
    fresh = begin_learner("ucb1", shipped(UcbSettings), data)
    assert isinstance(fresh, Ucb1)
    assert not fresh.counts.any()
    with pytest.raises(ConfigError, match="learns online"):
        begin_learner("survival", None, data)
