# SPDX-License-Identifier: Apache-2.0
"""Regret and recovery on curves made by hand."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks.regret import LineStyle, cumulative_regret, hindsight, learner_regret, recovery, regret_lines, spread
from speckv.errors import ConfigError
from speckv.evaluation.replays import draw_requests


def one(values: list[float]) -> np.ndarray:
    return np.array([values])


def test_every_recording_comes_equally_often() -> None:
    drawn = draw_requests([4, 7, 9], 7, np.random.default_rng(0))
    assert sorted(drawn[:3]) == sorted(drawn[3:6]) == [4, 7, 9]
    assert len(drawn) == 7
    with pytest.raises(ConfigError, match="at least 1 recording"):
        draw_requests([], 3, np.random.default_rng(0))


def test_each_half_has_its_own_best_constant() -> None:
    seconds = np.array([[1.0, 1.0, 2.0, 2.0], [2.0, 0.5, 1.0, 1.0], [2.0, 2.0, 0.5, 1.5]])
    found = hindsight(seconds, 2)
    assert found.gammas == (0, 1)  # 2.0 s against 2.5 and 4.0; 2.0 s is a tie, so the smaller gamma
    assert found.reference.tolist() == [1.0, 1.0, 1.0, 1.0]
    assert found.kept.tolist() == [1.0, 1.0, 2.0, 2.0]


def test_regret_adds_up_and_can_fall() -> None:
    regret = cumulative_regret(np.array([[3.0, 1.0], [1.0, 0.5]]), np.ones((2, 2)))
    assert regret.tolist() == [[2.0, 2.0], [0.0, -0.5]]


def test_a_learner_recovers_where_its_window_has_come_near_its_final_pace() -> None:
    reference, steps = np.ones((1, 20)), np.full((1, 20), 7)
    seconds = one([2.0] * 6 + [1.0] * 14)
    got = recovery(seconds, reference, steps, window=2, tail=4)
    assert (got.requests, got.steps, got.level) == (6, 42.0, 1.0)
    # A window of 5 with one slow request left: 5 / 6; within a fifth that is near enough.
    assert recovery(seconds, reference, steps, window=5, tail=10).requests == 6
    assert recovery(seconds, reference, steps, window=5, tail=10, tolerance=0.2).requests == 5


def test_a_learner_that_lost_nothing_needs_no_request() -> None:
    got = recovery(np.full((2, 12), 0.5), np.ones((2, 12)), np.ones((2, 12), np.int64), window=3, tail=6)
    assert (got.requests, got.steps, got.level) == (0, 0.0, 2.0)


def test_pace_is_relative_so_that_hard_prompts_do_not_look_like_a_relapse() -> None:
    reference = one([1.0] * 10 + [5.0] * 10)
    got = recovery(reference * 1.25, reference, np.ones((1, 20), np.int64), window=5, tail=10)
    assert (got.requests, got.level) == (0, 0.8)


def test_orders_are_summed_before_they_are_judged() -> None:
    """Each order alone is noisy; together their windows are exact."""
    noise = np.tile([0.5, -0.5], 10)
    seconds = np.stack([2.0 + noise, 2.0 - noise])
    seconds[:, :4] += 2.0
    got = recovery(seconds, np.full((2, 20), 2.0), np.ones((2, 20), np.int64), window=1, tail=4)
    assert (got.requests, got.level) == (4, 1.0)


def test_the_slowest_learner_is_there_at_the_last_window() -> None:
    seconds = one([3.0] * 8 + [1.0] * 2)
    got = recovery(seconds, np.ones((1, 10)), np.ones((1, 10), np.int64), window=2, tail=2)
    assert got.requests == 8
    with pytest.raises(ConfigError, match="tail of whole windows"):
        recovery(seconds, np.ones((1, 10)), np.ones((1, 10), np.int64), window=2, tail=3)
    with pytest.raises(ConfigError, match="the half of 10 requests"):
        recovery(seconds, np.ones((1, 10)), np.ones((1, 10), np.int64), window=6, tail=12)


def test_a_learner_is_summed_up_by_halves() -> None:
    reference = np.ones((2, 40))
    seconds = np.concatenate([np.full((2, 20), 1.5), np.full((2, 20), 0.9)], axis=1)
    got = learner_regret(seconds, np.ones((2, 40), np.int64), reference, np.full((2, 40), 0.6), 20)
    assert got.first == pytest.approx(0.5)
    assert got.second == pytest.approx(-0.1)
    assert got.over_clairvoyant == pytest.approx(1.0)
    assert got.curves[:, [19, 39]].tolist() == [pytest.approx([10.0, 8.0])] * 2
    assert got.change.level == pytest.approx(1 / 0.9)


def test_names_stand_apart_and_in_bounds() -> None:
    placed = spread([0.0, 0.0, 0.1, 9.9], gap=1.0, low=0.0, high=10.0)
    assert placed == pytest.approx([0.0, 1.0, 2.0, 9.9])
    assert spread([9.9, 10.0], gap=1.0, low=0.0, high=10.0) == pytest.approx([9.0, 10.0])


def test_the_panel_names_every_line() -> None:
    ax = Figure().add_subplot()
    curves = {"a": np.array([[1.0, 2.0, 3.0, 4.0]]), "b": np.array([[0.0, 0.0, -1.0, -1.0]])}
    regret_lines(
        ax,
        curves,
        {"a": LineStyle(color="#0072B2"), "b": LineStyle(color="#D55E00", dashes="--")},
        change=2,
        phases=("code", "chat"),
        kept=np.array([0.0, 0.0, 1.0, 2.0]),
        labels={"a": "a  +1 %", "b": "b"},
    )
    assert {text.get_text() for text in ax.texts} == {"code", "chat", "a  +1 %", "b", "first half's constant, kept"}
    assert ax.get_xlabel() == "requests"
    assert ax.get_ylabel() == "cumulative regret (s)"
