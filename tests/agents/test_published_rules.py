# SPDX-License-Identifier: Apache-2.0
"""Each published rule against cases worked out by hand."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from speckv.agents.building import build_settings
from speckv.agents.rules.adaedl import AdaEdl, AdaEdlSettings
from speckv.agents.rules.base import StoppingRule
from speckv.agents.rules.gammatune import GammaTune, GammaTunePlus, GammaTuneSettings
from speckv.agents.rules.goodput import Goodput, GoodputSettings
from speckv.agents.rules.kangaroo import Kangaroo, KangarooSettings
from speckv.agents.rules.llama_cpp import LlamaCpp, LlamaCppSettings
from speckv.agents.rules.sglang_ema import SglangEma, SglangEmaSettings
from speckv.agents.rules.svip import Svip, SvipSettings
from speckv.agents.rules.transformers_confidence import (
    TransformersConfidence,
    TransformersConfidenceSettings,
    best_threshold,
)
from speckv.agents.rules.transformers_heuristic import TransformersHeuristic, TransformersHeuristicSettings
from speckv.cost.times import StepTimes
from speckv.errors import ConfigError
from speckv.observation import SCHEMA, STOPPING_SCHEMA
from speckv.types import DecodedSteps, FloatArray
from tests.fakes_settings import shipped
from tests.fakes_traces import make_cost_table

ALL = np.ones(1, np.bool_)


def before(count: int = 1) -> FloatArray:
    return np.zeros((count, SCHEMA.size), np.float32)


def inside(**values: float) -> FloatArray:
    row = np.zeros((1, STOPPING_SCHEMA.size), np.float32)
    for name, value in values.items():
        row[0, STOPPING_SCHEMA.index(name)] = value
    return row


def step(drafted: int, accepted: int, confidences: tuple[float, ...] = ()) -> DecodedSteps:
    signals = np.zeros((1, 16, 3), np.float32)
    signals[0, : len(confidences), 1] = confidences
    return DecodedSteps(
        gamma=np.array([drafted]),
        num_drafted=np.array([drafted]),
        num_accepted=np.array([accepted]),
        num_emitted=np.array([accepted + 1]),
        draft_signals=signals,
        seconds=np.ones(1),
    )


def goes_on(rule: StoppingRule, **values: float) -> bool:
    return bool(rule.go_on_batch(inside(**values))[0])


def test_transformers_heuristic() -> None:
    rule = TransformersHeuristic(shipped(TransformersHeuristicSettings))
    played = []
    for accepted in (5, 2, 0, 0, 0, 0, 0, 1, 3):
        gamma = rule.act(before()[0])
        played.append(gamma)
        rule.remember(step(gamma, min(accepted, gamma)), ALL)
    # 5, all accepted: 7; 2 of 7: 6; then failures down to 1; 1 of 1: 3; 3 of 3: 5.
    assert played == [5, 7, 6, 5, 4, 3, 2, 1, 3]
    assert rule.act(before()[0]) == 5
    rule.reset()
    assert rule.act(before()[0]) == 5


def test_memory_moves_only_where_a_step_was_made() -> None:
    rule = TransformersHeuristic(shipped(TransformersHeuristicSettings, start=4))
    rule.start(2)
    both = DecodedSteps(
        gamma=np.array([4, 4]),
        num_drafted=np.array([4, 4]),
        num_accepted=np.array([4, 4]),
        num_emitted=np.array([5, 5]),
        draft_signals=np.zeros((2, 16, 3), np.float32),
        seconds=np.ones(2),
    )
    rule.remember(both, np.array([True, False]))
    assert rule.act_batch(before(2)).tolist() == [6, 4]


def test_transformers_confidence() -> None:
    rule = TransformersConfidence(shipped(TransformersConfidenceSettings))
    assert rule.act(before()[0]) == 16  # 20, cut to what recordings know of
    assert goes_on(rule, token_confidence=0.4)
    assert not goes_on(rule, token_confidence=0.39)
    rule.remember(step(4, 3, (0.9, 0.8, 0.75, 0.7)), ALL)
    assert goes_on(rule, token_confidence=0.5)  # four tested tokens are too few to refit
    rule.remember(step(4, 1, (0.95, 0.6, 0.99, 0.99)), ALL)
    # Six tested: accepted at 0.9, 0.8, 0.75, 0.95, not at 0.7 and 0.6: 0.75 parts them.
    assert goes_on(rule, token_confidence=0.75)
    assert not goes_on(rule, token_confidence=0.7)


def test_the_threshold_weighs_a_miss_three_times() -> None:
    # Accepted: 0.9 and 0.3; rejected: 0.8, 0.7, 0.6, 0.5. At 0.9: 0 + 3 * 1/2; at 0.3: 4/4 + 0. The latter is less.
    assert best_threshold([(0.9, True), (0.3, True), (0.8, False), (0.7, False), (0.6, False), (0.5, False)]) == 0.3


@pytest.mark.parametrize(
    ("rule", "least"), [(LlamaCpp(shipped(LlamaCppSettings)), 0.75), (Kangaroo(shipped(KangarooSettings)), 0.6)]
)
def test_least_probabilities(rule: StoppingRule, least: float) -> None:
    assert goes_on(rule, token_confidence=least + 1e-6)
    assert not goes_on(rule, token_confidence=least - 0.01)


def test_caps() -> None:
    assert LlamaCpp(shipped(LlamaCppSettings, n_max=3)).act(before()[0]) == 3
    assert Kangaroo(shipped(KangarooSettings)).act(before()[0]) == 6


def test_svip() -> None:
    rule = Svip(shipped(SvipSettings))
    # sqrt(0.15 * 0.6) = 0.3
    assert goes_on(rule, token_entropy=0.59)
    assert not goes_on(rule, token_entropy=0.61)


def test_adaedl() -> None:
    rule = AdaEdl(shipped(AdaEdlSettings))
    # 1 - sqrt(0.2 * 1.25) = 0.5
    assert goes_on(rule, token_entropy=1.24)
    assert not goes_on(rule, token_entropy=1.26)
    rule.remember(step(2, 0), ALL)  # rate 0.45 < 0.9: lambda' = 0.51, lambda = 0.501
    assert rule._threshold[0] == pytest.approx(0.501)
    rule.reset()
    rule.remember(step(3, 3), ALL)  # rate 0.95, cap 16 not reached: lambda' = 0.49, lambda = 0.499
    assert rule._threshold[0] == pytest.approx(0.499)
    rule.reset()
    rule.remember(step(16, 16), ALL)  # rate 0.95, cap reached: unchanged
    assert rule._threshold[0] == pytest.approx(0.5)
    rule.remember(step(0, 0), ALL)  # a plain step says nothing
    assert rule._rate[0] == pytest.approx(0.95)


def test_gammatune() -> None:
    rule = GammaTune(shipped(GammaTuneSettings))
    assert rule.act(before()[0]) == 4
    rule.remember(step(4, 4), ALL)
    assert rule.act(before()[0]) == 6  # 4 + 2
    rule.remember(step(6, 1), ALL)
    assert rule.act(before()[0]) == 4  # 0.8 * 4 + 0.2 * 1 = 3.4
    for _ in range(20):
        rule.remember(step(4, 0), ALL)
    assert rule.act(before()[0]) == 2  # not below half of 4
    assert rule.name == "gammatune"
    plus = GammaTunePlus(shipped(GammaTuneSettings, threshold=0.3))
    assert isinstance(plus, GammaTunePlus)
    assert plus.name == "gammatune+"
    assert not plus.go_on(inside(token_confidence=0.29)[0])


def test_sglang_ema() -> None:
    rule = SglangEma(shipped(SglangEmaSettings))
    played = []
    for number in range(60):
        gamma = rule.act(before()[0])
        played.append(gamma)
        rule.remember(step(gamma, gamma if number < 26 else 0), ALL)
    # The first move comes after 10 + 5 steps: the average, from 2 towards 3, is above 2.5. Ten later it is above 4.5.
    assert played[:15] == [3] * 15
    assert played[15:25] == [5] * 10
    assert played[25:30] == [7] * 5
    assert played[-1] == 1


def test_sglang_ema_switches_off_and_looks_again() -> None:
    rule = SglangEma(shipped(SglangEmaSettings, candidates=(0, 1, 2), start=1, warmup=0, interval=2))
    played = []
    for _ in range(8):
        gamma = rule.act(before()[0])
        played.append(gamma)
        rule.remember(step(gamma, 0), ALL)
    # The average starts at 0, not above 0.5 - 0.25: off after two steps; probed after two more, and off again.
    assert played == [1, 1, 0, 0, 1, 1, 0, 0]


def test_goodput_is_the_argmax() -> None:
    table = make_cost_table()
    times = StepTimes.of(table)
    rule = Goodput(shipped(GoodputSettings), times)
    rows = before(3)
    rows[:, SCHEMA.index("bits_per_weight")] = [1.0, 0.25, 1.0]
    rows[:, SCHEMA.index("acceptance_ema")] = [0.9, 0.9, 0.05]
    rows[:, SCHEMA.index("draft_lag")] = [0.0, 0.0, 1 / 16]
    chosen = []
    for compression, rate, lag in (("fp16", 0.9, 0), ("nf4", 0.9, 0), ("fp16", 0.05, 1)):
        tokens = [sum(rate**k for k in range(gamma + 1)) for gamma in range(17)]
        seconds = [float(table.step_seconds(compression, gamma, lag, 64)) for gamma in range(17)]
        chosen.append(int(np.argmax(np.array(tokens) / seconds)))
    assert rule.act_batch(rows).tolist() == chosen
    assert chosen[0] > chosen[1] > chosen[2]


def test_step_times_are_the_tables() -> None:
    table = make_cost_table(controller_s=0.5)
    rows = before(2)
    rows[:, SCHEMA.index("bits_per_weight")] = [1.0, 0.25]
    rows[:, SCHEMA.index("draft_lag")] = [3 / 16, 0.0]
    found = StepTimes.of(table).step_s(rows)
    for row, (compression, lag) in enumerate((("fp16", 3), ("nf4", 0))):
        expected = table.step_seconds(compression, np.arange(17), lag, 64) + 0.5
        np.testing.assert_allclose(found[row], expected)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        (TransformersHeuristicSettings, {"start": 0}),
        (TransformersConfidenceSettings, {"threshold": 1.5}),
        (LlamaCppSettings, {"n_max": 0}),
        (KangarooSettings, {"eta": -0.1}),
        (SvipSettings, {"scale": 0.0}),
        (AdaEdlSettings, {"target": 2.0}),
        (GammaTuneSettings, {"eta": 2.0}),
        (SglangEmaSettings, {"candidates": [3, 1]}),
        (SglangEmaSettings, {"start": 4}),
        (GoodputSettings, {"gamma_max": 17}),
    ],
)
def test_settings_out_of_range_are_refused(settings: type[Any], options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="Expected agent"):
        build_settings(settings, {**asdict(shipped(settings)), **options}, "agent")
