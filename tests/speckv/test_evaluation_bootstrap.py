# SPDX-License-Identifier: Apache-2.0
"""Intervals against known answers, and their coverage."""

import itertools

import numpy as np
import pytest

from speckv.errors import ConfigError
from speckv.evaluation.bootstrap import (
    percentile_interval,
    ratio_interval,
    resample_counts,
)

pytestmark = pytest.mark.usefixtures("few_prompts")


def test_resamples_keep_every_tasks_number_of_prompts() -> None:
    tasks = ["code"] * 3 + ["math"] * 5 + ["chat"]
    counts = resample_counts(tasks, 200, seed=0)
    assert counts.shape == (200, 9)
    assert (counts[:, :3].sum(axis=1) == 3).all()
    assert (counts[:, 3:8].sum(axis=1) == 5).all()
    assert (counts[:, 8] == 1).all()
    # A prompt of n is missing from a resample with chance (1 - 1/n)^n: 0.3277 for 5; 1000 draws, four sigma.
    assert abs((counts[:, 3:8] == 0).mean() - 0.8**5) < 4 * np.sqrt(0.22 / 1000)


def test_resamples_depend_on_the_seed_alone() -> None:
    tasks = ["a", "b", "a"]
    np.testing.assert_array_equal(resample_counts(tasks, 50, seed=3), resample_counts(tasks, 50, seed=3))
    assert (resample_counts(tasks, 50, seed=3) != resample_counts(tasks, 50, seed=4)).any()


def test_no_resample_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        resample_counts(["a"], 0, seed=0)


def test_interval_is_the_percentiles_of_the_whole_bootstrap_distribution() -> None:
    """Three prompts have 27 ordered resamples; drawn 60,000 times, their percentiles are those of the 27."""
    baseline, ours = np.array([6.0, 2.0, 4.0]), np.array([3.0, 2.0, 1.0])
    every = [baseline[list(d)].sum() / ours[list(d)].sum() for d in itertools.product(range(3), repeat=3)]
    interval = ratio_interval(baseline, ours, resample_counts(["a"] * 3, 60_000, seed=0), confidence=0.6)
    # Sums before the ratio: 12 / 6; the mean of the three ratios would be 2.33.
    assert interval.estimate == 2.0
    assert interval.low == pytest.approx(np.percentile(every, 20, method="inverted_cdf"))
    assert interval.high == pytest.approx(np.percentile(every, 80, method="inverted_cdf"))


def test_pairing_removes_what_prompts_have_in_common() -> None:
    rng = np.random.default_rng(0)
    difficulty = rng.lognormal(0.0, 1.0, 40)
    counts = resample_counts(["a"] * 40, 2000, seed=0)
    exact = ratio_interval(1.25 * difficulty, difficulty, counts)
    assert exact.low == pytest.approx(1.25)
    assert exact.high == pytest.approx(1.25)
    noisy = ratio_interval(1.25 * difficulty, difficulty * rng.normal(1.0, 0.05, 40), counts)
    unpaired = ratio_interval(1.25 * difficulty, rng.permutation(difficulty), counts)
    assert noisy.low is not None
    assert noisy.high is not None
    assert unpaired.low is not None
    assert unpaired.high is not None
    assert noisy.high - noisy.low < (unpaired.high - unpaired.low) / 5


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """400 studies of 40 prompts, nominal 95 %.

    The percentile bootstrap covers a little less than it says at this n, about 0.94. The count of misses is binomial:
    coverage outside [0.905, 0.985] has a chance below 1 % if the true one lies between 0.94 and 0.955. The seed is
    fixed, so this test gives one answer for ever.
    """
    rng = np.random.default_rng(1)
    studies, prompts = 400, 40
    hits = 0
    for study in range(studies):
        ours = rng.lognormal(0.0, 0.5, prompts)
        baseline = ours * rng.lognormal(0.1, 0.3, prompts)
        interval = ratio_interval(baseline, ours, resample_counts(["a"] * prompts, 400, seed=study))
        assert interval.low is not None
        assert interval.high is not None
        hits += interval.low <= np.exp(0.1 + 0.3**2 / 2) <= interval.high
    assert 0.905 <= hits / studies <= 0.985


def test_one_prompt_has_no_interval() -> None:
    interval = ratio_interval(np.array([3.0, 0.0]), np.array([2.0, 0.0]), resample_counts(["a", "b"], 10, seed=0))
    assert (interval.estimate, interval.low, interval.high) == (1.5, None, None)


def test_a_resample_without_the_group_is_left_out() -> None:
    """Only the first two of three prompts were recorded here: 1 of 27 resamples has none of them."""
    counts = resample_counts(["a"] * 3, 5000, seed=0)
    interval = ratio_interval(np.array([4.0, 2.0, 0.0]), np.array([2.0, 2.0, 0.0]), counts)
    assert (interval.estimate, interval.low, interval.high) == (1.5, 1.0, 2.0)


def test_nothing_usable_leaves_the_estimate() -> None:
    interval = percentile_interval(1.0, np.array([np.nan, np.inf]))
    assert (interval.low, interval.high) == (None, None)


def test_geometric_mean_weighs_settings_alike() -> None:
    """A slow setting at 4 times and a fast one at 1 time: 2 by the geometric mean, 3.97 by sums over sums."""
    baseline = np.array([[400.0, 1.0], [400.0, 1.0]])
    ours = np.array([[100.0, 1.0], [100.0, 1.0]])
    interval = ratio_interval(baseline, ours, resample_counts(["a"] * 2, 20, seed=0))
    assert interval.estimate == pytest.approx(2.0)
    assert interval.low == pytest.approx(2.0)
    single = ratio_interval(baseline[:1], ours[:1], np.ones((5, 1)))
    assert (single.low, single.high) == (None, None)
