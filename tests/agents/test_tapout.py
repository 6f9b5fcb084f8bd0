# SPDX-License-Identifier: Apache-2.0
"""TapOut: its rules one by one, when it chooses, and what it learns."""

import math

import numpy as np
import pytest

from speckv.agents.bandits.tapout import EntropyRise, LeastMargin, TapOut, TapOutSettings
from speckv.agents.registry import default_settings
from speckv.cost.times import StepTimes
from speckv.evaluation.replays import controller_sums
from speckv.observation import SCHEMA, STOPPING_SCHEMA
from speckv.types import FloatArray, OnlineLearner, StoppingController
from tests.fakes_settings import shipped
from tests.fakes_traces import compile_both, make_cost_table, outcome, random_traces

TIMES = StepTimes.of(make_cost_table())
FP16 = np.zeros(SCHEMA.size, np.float32)
FP16[SCHEMA.index("bits_per_weight")] = 1.0


def seen(depth: int, *, entropy: float = 0.0, confidence: float = 1.0, margin: float = 1.0) -> FloatArray:
    observation = np.zeros(STOPPING_SCHEMA.size, np.float32)
    observation[: SCHEMA.size] = FP16
    values = {"depth": depth / 16, "token_entropy": entropy, "token_confidence": confidence, "token_margin": margin}
    for name, value in values.items():
        observation[STOPPING_SCHEMA.index(name)] = value
    return observation


def test_published_rules_have_the_constants_of_their_own_agents() -> None:
    _, svip, adaedl, *_ = TapOut(shipped(TapOutSettings), TIMES, 0).rules
    assert svip.settings == default_settings("svip", gamma_max=16)
    assert adaedl.settings == default_settings("adaedl", gamma_max=16)


def test_the_entropy_difference_looks_at_two_tokens_of_one_step() -> None:
    rule = EntropyRise(16, 0.2)
    assert rule.go_on(seen(1, entropy=4.0))  # nothing before it
    assert rule.go_on(seen(2, entropy=1.0))
    assert rule.go_on(seen(3, entropy=1.21))  # from 1 to 1.1
    assert not rule.go_on(seen(4, entropy=2.25))  # from 1.1 to 1.5
    assert rule.go_on(seen(1, entropy=9.0))  # another step
    many = EntropyRise(16, 0.2)
    many.start(2)
    many.go_on_batch(np.stack([seen(1, entropy=1.0), seen(1, entropy=4.0)]))
    assert many.go_on_batch(np.stack([seen(2, entropy=4.0), seen(2, entropy=4.0)])).tolist() == [False, True]


def test_the_margin_stops_where_two_tokens_are_alike() -> None:
    rule = LeastMargin(16, 0.2)
    assert [rule.go_on(seen(1, margin=m)) for m in (0.1, 0.2, 0.9)] == [False, True, True]


@pytest.mark.parametrize(("level", "steps"), [("request", [0, 0, 1, 1]), ("step", [0, 1, 2, 3])])
def test_it_keeps_a_rule_for_a_request_or_for_a_step(level: str, steps: list[int]) -> None:
    bandit = TapOut(shipped(TapOutSettings, level=level), TIMES, 0)
    followed = []
    for _ in range(2):
        bandit.reset()
        for _ in range(2):
            assert bandit.act(FP16) == 16
            assert bandit._last is not None
            followed.append(bandit._last[1])
            bandit.learn(outcome(4, 2))
    assert followed == steps


def test_it_follows_ucb1_on_blended_rewards() -> None:
    bandit = TapOut(shipped(TapOutSettings), TIMES, 0)
    bandit.act(FP16)
    bandit.learn(outcome(4, 2))
    assert bandit.means[0, 0] == pytest.approx(0.5 * 2 / 4 + 0.5 * 2 / 16)
    bandit.act(FP16)
    bandit.learn(outcome(0, 0))  # no room for a draft: nothing to learn
    assert bandit.counts[0].tolist() == [1, 0, 0, 0, 0]
    bandit.counts[0], bandit.means[0] = [40, 40, 10, 5, 5], [0.5, 0.4, 0.3, 0.2, 0.1]
    bounds = [m + math.sqrt(2 * math.log(100) / n) for m, n in zip(bandit.means[0], bandit.counts[0], strict=True)]
    assert bandit.choose(0, FP16) == int(np.argmax(bounds))


def test_the_rule_that_was_chosen_stops_the_draft() -> None:
    bandit = TapOut(shipped(TapOutSettings), TIMES, 0)
    unsure, scattered = seen(2, confidence=0.5), seen(2, entropy=3.0)
    answers = []
    for number in range(len(bandit.rules)):
        bandit.counts[0] = np.where(np.arange(len(bandit.rules)) == number, 0, 1)
        bandit.reset()
        bandit.act(FP16)
        answers.append((bandit.go_on(unsure), bandit.go_on(scattered)))
    # Confidence, SVIP, AdaEDL (its bound is 1 - sqrt(0.2 * 3), below 0.5), the difference (from 0), the margin.
    assert answers == [(False, True), (True, False), (True, False), (True, False), (True, True)]


def test_it_is_asked_inside_the_steps_of_a_comparison() -> None:
    bandit = TapOut(shipped(TapOutSettings), TIMES, 0)
    assert isinstance(bandit, StoppingController)
    assert isinstance(bandit, OnlineLearner)
    compiled, cost = compile_both(random_traces(num_prompts=8, seed=1))
    sums = controller_sums(bandit, compiled, cost)
    played = np.flatnonzero(sums.gammas.sum(axis=(0, 1)))
    assert len(played) > 3
    assert not bandit.counts.any()  # a copy learned
