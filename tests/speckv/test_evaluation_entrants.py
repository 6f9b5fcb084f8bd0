# SPDX-License-Identifier: Apache-2.0
"""Runs of one agent as one controller: sums by hand, and what is resampled."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.interval_coverage import sums_of, whole_group
from speckv.errors import ConfigError
from speckv.evaluation.bootstrap import Float64, ratio_interval, resample_counts
from speckv.evaluation.compare import Comparison, compare
from speckv.evaluation.entrants import Entrant, References, SeedGroup, interquartile_mean, make_entrants, measure
from speckv.evaluation.metrics import ALL
from speckv.runtime.constant import ConstantGamma
from tests.fakes_traces import make_cost_table, random_traces

pytestmark = pytest.mark.usefixtures("few_prompts")

BASE = sums_of("base", np.array([[6.0], [2.0], [4.0]]))
REFERENCES = References(autoregressive=BASE, best_fixed=BASE, clairvoyant=BASE)


def runs_of(*seconds: list[float]) -> list[Float64]:
    return [np.array(s)[:, np.newaxis] for s in seconds]


def entrant_of(*seconds: list[float], picks: NDArray[np.int64] | None = None, resamples: int = 4) -> Entrant:
    runs = [sums_of(f"run{k}", s) for k, s in enumerate(runs_of(*seconds))]
    return Entrant.of("agent", runs, np.zeros((resamples, len(runs)), np.int64) if picks is None else picks)


def test_the_interquartile_mean_leaves_a_quarter_out_at_either_end() -> None:
    """Eight values: 3, 4, 5, 6 are left. Five: one goes at either end. Three: none, the plain mean."""
    assert interquartile_mean(np.array([8.0, 1.0, 7.0, 2.0, 6.0, 3.0, 5.0, 4.0])) == 4.5
    assert interquartile_mean(np.array([0.0, 10.0, 2.0, 4.0, 3.0])) == 3.0
    assert interquartile_mean(np.array([0.0, 1.0, 5.0])) == 2.0
    assert interquartile_mean(np.array([[0.0, 4.0, 1.0, 2.0], [8.0, 8.0, 8.0, 8.0]])).tolist() == [1.5, 8.0]


def test_the_estimate_is_a_sum_over_a_sum_over_prompts_and_runs() -> None:
    """The baseline takes 12 s a run; the runs take 6 s and 18 s, so 24 / 24; the mean of 2 and 2/3 would be 1.33."""
    entrant = entrant_of([3.0, 1.0, 2.0], [9.0, 3.0, 6.0])
    row = measure(entrant, whole_group(3), REFERENCES, resample_counts(["a"] * 3, 4, seed=0))
    assert row.speedup_vs_best_fixed.estimate == pytest.approx(1.0)
    assert row.controller == "agent"
    # Runs are as fast one to another on every prompt, so only which run is drawn moves the interval.
    assert row.seeds_iqm is not None
    assert row.seeds_iqm.estimate == pytest.approx((2.0 + 2.0 / 3.0) / 2)


def test_intervals_are_the_percentiles_of_every_draw_of_prompts_and_runs() -> None:
    """Three prompts and three runs: 27 draws of prompts by 9 of two runs; drawn 60,000 times, the same percentiles."""
    seconds = ([3.0, 2.0, 1.0], [4.0, 1.0, 3.0], [5.0, 3.0, 2.0])
    resamples = 60_000
    picks = np.random.default_rng(0).integers(0, 3, (resamples, 3))
    entrant = entrant_of(*seconds, picks=picks)
    row = measure(entrant, whole_group(3), REFERENCES, resample_counts(["a"] * 3, resamples, seed=0))
    base = BASE.seconds[:, 0]
    every = [
        2 * base[list(prompts)].sum() / sum(np.array(seconds[run])[list(prompts)].sum() for run in runs)
        for prompts in itertools.product(range(3), repeat=3)
        for runs in itertools.product(range(3), repeat=2)
    ]
    interval = row.speedup_vs_best_fixed
    assert interval.low == pytest.approx(np.percentile(every, 2.5), rel=0.02)
    assert interval.high == pytest.approx(np.percentile(every, 97.5), rel=0.02)
    # One compression: its geometric mean is itself.
    assert row.geomean_vs_best_fixed == interval


def test_n_minus_1_draws_give_the_variance_of_a_mean_over_runs() -> None:
    """The replicates' variance is s^2 / n: here 5 runs of equal prompts, s^2 = 2.5, so 0.5; n draws would give 0.4."""
    picks = np.random.default_rng(0).integers(0, 5, (200_000, 5))
    entrant = entrant_of([1.0], [2.0], [3.0], [4.0], [5.0], picks=picks)
    drawn = entrant.shares @ np.arange(1.0, 6.0)
    # Its own standard error is about 0.5 * sqrt(2 / 200,000) = 0.0016.
    assert drawn.var() == pytest.approx(0.5, abs=0.007)
    np.testing.assert_allclose(entrant.shares.sum(axis=1), 1.0)


def test_intervals_of_a_single_run_are_those_of_its_prompts() -> None:
    sums = sums_of("one", np.array([[3.0], [2.0], [1.0]]))
    counts = resample_counts(["a"] * 3, 50, seed=0)
    row = measure(Entrant.single(sums, 50), whole_group(3), REFERENCES, counts)
    alone = ratio_interval(BASE.seconds[:, 0], sums.seconds[:, 0], counts)
    for interval in (row.speedup_vs_ar, row.geomean_vs_best_fixed):
        assert (interval.estimate, interval.low, interval.high) == pytest.approx(
            (alone.estimate, alone.low, alone.high)
        )
    assert row.seeds_iqm is None


def test_one_prompt_has_no_interval() -> None:
    entrant = entrant_of([3.0, 0.0], [2.0, 0.0])
    base = sums_of("base", np.array([[6.0], [0.0]]))
    references = References(autoregressive=base, best_fixed=base, clairvoyant=base)
    row = measure(entrant, whole_group(2), references, resample_counts(["a", "b"], 4, seed=0))
    assert row.seeds_iqm is not None
    assert (row.speedup_vs_best_fixed.low, row.geomean_vs_ar.high, row.seeds_iqm.low) == (None, None, None)


def test_a_group_stands_where_its_first_run_stood() -> None:
    tested = [sums_of(name, np.ones((2, 1))) for name in ("x", "a1", "y", "a2")]
    entrants = make_entrants(tested, [SeedGroup.of("a", ["a1", "a2"])], num_resamples=10, seed=0)
    assert [e.name for e in entrants] == ["x", "a (2 seeds)", "y"]
    assert [len(e.runs) for e in entrants] == [1, 2, 1]


@pytest.mark.parametrize("members", [["a1"], ["a1", "unknown"], ["a1", "a1"]])
def test_groups_that_cannot_be_are_refused(members: list[str]) -> None:
    tested = [sums_of(name, np.ones((2, 1))) for name in ("a1", "a2")]
    with pytest.raises(ConfigError, match="groups of 2 or more controllers"):
        make_entrants(tested, [SeedGroup.of("a", members)], num_resamples=10, seed=0)


def grouped(*, seed: int = 0) -> Comparison:
    traces = random_traces(num_prompts=32, seed=9)
    return compare(
        train=traces.select(split="train"),
        test=traces.select(split="test"),
        cost=make_cost_table(),
        controllers=[*(ConstantGamma(g, name=f"r{g}") for g in (2, 3, 5)), ConstantGamma(4, name="four")],
        num_resamples=200,
        seed=seed,
        seed_groups=[SeedGroup.of("r", ["r2", "r3", "r5"])],
    )


def test_a_comparison_shows_the_group_and_keeps_its_runs() -> None:
    comparison = grouped()
    assert comparison.controllers == ("r2", "r3", "r5", "four")
    assert comparison.entrants == ("r (3 seeds)", "four")
    for result in comparison.groups:
        seconds = [result.row(name).speedup_vs_ar.estimate for name in ("r2", "r3", "r5")]
        # Equal tokens: the harmonic mean of the runs' speed-ups.
        assert result.row("r (3 seeds)").speedup_vs_ar.estimate == pytest.approx(1 / np.mean([1 / s for s in seconds]))
    both = comparison.group(ALL, ALL).row("r (3 seeds)").speedup_vs_ar
    assert both.low is not None
    assert both.high is not None
    assert both.low < both.estimate < both.high


def test_a_groups_name_may_be_nobody_elses() -> None:
    traces = random_traces(num_prompts=16, seed=9)
    with pytest.raises(ConfigError, match="distinct controller names"):
        compare(
            train=traces.select(split="train"),
            test=traces.select(split="test"),
            cost=make_cost_table(),
            controllers=[ConstantGamma(g, name=name) for g, name in ((1, "a"), (2, "b"), (3, "a (2 seeds)"))],
            num_resamples=5,
            seed_groups=[SeedGroup.of("a", ["a", "b"])],
        )
