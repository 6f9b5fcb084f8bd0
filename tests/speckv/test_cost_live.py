# SPDX-License-Identifier: Apache-2.0
"""Times learned from steps: convergence, noise, outliers, lasting changes, clocks that are too coarse."""

import math

import numpy as np
import pytest

from speckv.cost.live import LiveTimes, TimedStep, TimesPrior
from speckv.errors import ConfigError

GAMMA_MAX = 16
PLAIN_S, DRAFT_S = 0.2, 0.05


def verify_s(drafted: int) -> float:
    """A jump from one row to several, then a slope."""
    return PLAIN_S if not drafted else PLAIN_S * (1.1 + 0.03 * drafted)


def truth(scale: float = 1.0) -> np.ndarray:
    return scale * np.array([verify_s(n) + n * DRAFT_S for n in range(GAMMA_MAX + 1)])


def timed(drafted: int, *, scale: float = 1.0, passes: bool = True, **others: object) -> TimedStep:
    draft = scale * DRAFT_S
    return TimedStep(
        num_drafted=drafted,
        seconds=float(truth(scale)[drafted]),
        first_draft_s=draft if passes and drafted else None,
        more_draft_s=draft * (drafted - 1) if passes and drafted else None,
        verify_s=scale * verify_s(drafted) if passes else None,
        **others,  # type: ignore[arg-type]
    )


def learned(steps: list[TimedStep]) -> LiveTimes:
    times = LiveTimes(TimesPrior.flat(GAMMA_MAX))
    for step in steps:
        times.observe(step)
    return times


@pytest.mark.parametrize("passes", [True, False])
def test_a_few_quiet_steps_give_the_times_where_it_matters(passes: bool) -> None:
    times = learned([timed(n, passes=passes) for n in (0, 3, 1, 4, 0, 2, 3)])
    assert times.by_passes is passes
    ratio = times.step_s[:5] / truth()[:5]
    assert np.abs(ratio - 1).max() < 0.1
    assert (np.diff(times.step_s[1:]) >= 0).all()


def test_many_steps_give_the_times_of_every_length_that_was_drafted() -> None:
    rng = np.random.default_rng(0)
    times = learned([timed(int(n)) for n in rng.integers(0, 9, 400)])
    assert np.abs(times.step_s[:9] / truth()[:9] - 1).max() < 0.02


def test_noise_and_outliers_move_it_little() -> None:
    rng = np.random.default_rng(1)
    steps = []
    for number, n in enumerate(rng.integers(0, 6, 600)):
        scale = math.exp(0.15 * rng.standard_normal()) * (10.0 if number % 100 == 99 else 1.0)
        steps.append(timed(int(n), scale=scale))
    times = learned(steps)
    assert np.abs(times.step_s[:6] / truth()[:6] - 1).max() < 0.1
    assert times.num_changes == 0
    assert 0.08 < times.noise < 0.25


@pytest.mark.parametrize("scale", [3.0, 0.4])
def test_a_lasting_change_is_followed_within_ten_steps(scale: float) -> None:
    before = [timed(n % 5) for n in range(100)]
    times = learned([*before, *(timed(n % 4 + 1, scale=scale) for n in range(10))])
    assert times.num_changes == 1
    assert np.abs(times.step_s[1:5] / truth(scale)[1:5] - 1).max() < 0.1
    assert times.step_s[0] == pytest.approx(truth(scale)[0], rel=0.15)  # plain steps are taken to have moved along


def test_single_slow_steps_are_no_change() -> None:
    times = learned([timed(n % 5, scale=5.0 if n % 7 == 6 else 1.0) for n in range(200)])
    assert times.num_changes == 0
    assert np.abs(times.step_s[:5] / truth()[:5] - 1).max() < 0.2


def test_a_clock_that_is_coarser_than_a_pass_falls_back_to_whole_steps() -> None:
    assert learned([timed(2), timed(0)]).by_passes
    times = learned([timed(2), timed(0)])
    times.observe(TimedStep(num_drafted=2, seconds=0.3, first_draft_s=0.0, more_draft_s=0.0, verify_s=0.3))
    assert not times.by_passes
    for n in (2, 0, 3, 2, 0):
        times.observe(timed(n, passes=False))
    assert np.abs(times.step_s[:4] / truth()[:4] - 1).max() < 0.15


@pytest.mark.parametrize("late", [{"lag": 30}, {"first_draft": True}])
def test_a_draft_that_reads_the_text_first_does_not_count_as_a_pass(late: dict[str, object]) -> None:
    slow = TimedStep(
        num_drafted=2,
        seconds=2.0 + float(truth()[2]),
        first_draft_s=2.0 + DRAFT_S,
        more_draft_s=DRAFT_S,
        verify_s=verify_s(2),
        **late,  # type: ignore[arg-type]
    )
    times = learned([timed(n % 3) for n in range(20)] + [slow, timed(2)] * 20)
    assert times.step_s[2] == pytest.approx(truth()[2], rel=0.1)


def test_what_was_learned_is_a_prior() -> None:
    prior = learned([timed(n % 6) for n in range(100)]).as_prior()
    np.testing.assert_allclose(np.array(prior.step) * PLAIN_S, truth(), rtol=0.15)
    assert LiveTimes(prior).step_s[0] == 1.0


def test_impossible_times_are_ignored_or_refused() -> None:
    times = learned([timed(2)])
    before = times.step_s.copy()
    for seconds in (0.0, -1.0, math.nan, math.inf):
        times.observe(TimedStep(num_drafted=1, seconds=seconds))
    np.testing.assert_array_equal(times.step_s, before)
    with pytest.raises(ConfigError, match="positive times"):
        TimesPrior(draft=0.0, verify=(1.0, 1.0))
