# SPDX-License-Identifier: Apache-2.0
"""Prompts by length, and shares of prompts by speed-up, against counts by hand."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.interval_coverage import sums_of, whole_group
from speckv.evaluation.bootstrap import resample_counts
from speckv.evaluation.compare import compare, describe_setting
from speckv.evaluation.entrants import TAUS, Entrant, Profile, speedup_profile
from speckv.evaluation.metrics import ALL, Grid, groups_by_length, groups_of, length_buckets
from speckv.evaluation.plots import profile_lines
from speckv.evaluation.text import format_p
from speckv.runtime.constant import ConstantGamma
from speckv.traces import TraceSequence
from tests.fakes_traces import compile_both, make_cost_table, make_sequence, make_traces

pytestmark = pytest.mark.usefixtures("few_prompts")


def recording(number: int, prompt_len: int, compression: str = "fp16", split: str = "test") -> TraceSequence:
    return make_sequence(
        [1, 0, 1, 1, 0, 1],
        prompt_id=f"{split}{number}",
        task="code",
        split=split,
        compression=compression,
        prompt_len=prompt_len,
    )


def test_buckets_hold_a_quarter_of_the_prompts_and_are_named_by_their_bounds() -> None:
    lengths = [40, 10, 30, 20, 80, 50, 60, 70]
    compiled, _ = compile_both(make_traces([recording(k, n) for k, n in enumerate(lengths)], max_new_tokens=6))
    buckets = length_buckets(compiled, Grid.of(compiled))
    assert [b.name for b in buckets] == ["10-20", "30-40", "50-60", "70-80"]
    assert [len(b.prompts) for b in buckets] == [2, 2, 2, 2]
    # Six tokens were generated behind each prompt.
    assert [b.longest_context for b in buckets] == [26, 46, 66, 86]


def test_prompts_of_one_length_stay_together() -> None:
    compiled, _ = compile_both(make_traces([recording(k, n) for k, n in enumerate([7] * 7 + [9])], max_new_tokens=6))
    buckets = length_buckets(compiled, Grid.of(compiled))
    assert [(b.name, len(b.prompts)) for b in buckets] == [("7", 7), ("9", 1)]


def test_a_bucket_is_cut_out_of_what_was_recorded() -> None:
    sequences = [recording(k, n) for k, n in enumerate([5, 6, 7, 8])] + [recording(3, 8, "nf4")]
    compiled, _ = compile_both(make_traces(sequences, max_new_tokens=6))
    grid = Grid.of(compiled)
    tokens = grid.arrange(compiled.length)
    whole = tuple(g for g in groups_of(grid, tokens) if g.task == ALL)
    cut = [
        (b.name, g.compression, len(g.prompts))
        for b in length_buckets(compiled, grid)
        for g in groups_by_length(b, whole, tokens)
    ]
    assert cut == [
        *((name, c, 1) for name in ("5", "6", "7") for c in ("fp16", ALL)),
        *(("8", c, 1) for c in ("fp16", "nf4", ALL)),
    ]


def test_a_bucket_leaves_out_compressions_that_were_not_recorded_in_it() -> None:
    sequences = [recording(k, n) for k, n in enumerate([5, 6, 7, 8])] + [recording(3, 8, "nf4")]
    compiled, _ = compile_both(make_traces(sequences, max_new_tokens=6))
    grid = Grid.of(compiled)
    tokens = grid.arrange(compiled.length)
    every = next(g for g in groups_of(grid, tokens) if (g.task, g.compression) == (ALL, ALL))
    columns = [groups_by_length(b, (every,), tokens)[0].columns.tolist() for b in length_buckets(compiled, grid)]
    assert columns == [[0], [0], [0], [0, 1]]


def test_lengths_in_a_comparison_add_up_to_the_whole() -> None:
    sequences = [recording(k, n, split=split) for split in ("train", "test") for k, n in enumerate([5, 60, 7, 80, 9])]
    traces = make_traces(sequences, max_new_tokens=6)
    comparison = compare(
        train=traces.select(split="train"),
        test=traces.select(split="test"),
        cost=make_cost_table(),
        controllers=[ConstantGamma(3, name="three")],
        num_resamples=20,
    )
    fp16 = [found for found in comparison.lengths if found.group.compression == "fp16"]
    assert sum(len(found.group.prompts) for found in fp16) == 5
    # Five tokens of each prompt are decoded; a throughput's inverse is seconds a token.
    parts = [len(f.group.prompts) * 5 / f.row("three").throughput for f in fp16]
    assert 25 / sum(parts) == pytest.approx(comparison.group("fp16", ALL).row("three").throughput)
    assert fp16[0].row("three").speedup_vs_ar.low is not None
    assert comparison.setting.temperature == 0.0


@pytest.mark.parametrize(
    ("sampling", "temperature", "text"),
    [
        ({"mode": "greedy", "temperature": 1.0}, 0.0, "greedy"),
        ({"mode": "gumbel", "temperature": 0.7}, 0.7, "gumbel, temperature 0.7"),
        ({"mode": "gumbel"}, None, "gumbel"),
    ],
)
def test_the_setting_states_the_recordings_temperature(
    sampling: dict[str, str | float | int], temperature: float | None, text: str
) -> None:
    traces = make_traces([recording(0, 5)], max_new_tokens=6)
    traces = replace(traces, metadata=replace(traces.metadata, sampling=sampling))
    setting = describe_setting(traces, traces, make_cost_table(), ["fp16"], num_resamples=1, seed=0)
    assert (setting.temperature, setting.text) == (temperature, text)


def profile_of(seconds: list[list[float]], resamples: int = 500, picks: NDArray[np.int64] | None = None) -> Profile:
    fixed = sums_of("fixed", np.full((len(seconds[0]), 1), 12.0))
    runs = [sums_of(f"run{k}", np.array(s)[:, np.newaxis]) for k, s in enumerate(seconds)]
    drawn = np.zeros((resamples, len(runs)), np.int64) if picks is None else picks
    counts = resample_counts(["a"] * len(seconds[0]), resamples, seed=0)
    return speedup_profile(Entrant.of("agent", runs, drawn), fixed, whole_group(len(seconds[0])), counts)


def test_a_profile_counts_prompts_that_are_at_least_so_fast() -> None:
    """Speed-ups 12/10 = 1.2, 1, 12/15 = 0.8 and 12/8 = 1.5."""
    profile = profile_of([[10.0, 12.0 * (1 + 1e-15), 15.0, 8.0]])
    assert [profile.share(tau) for tau in (0.6, 0.8, 0.825, 1.0, 1.025, 1.2, 1.5, 1.525)] == [
        1.0,
        1.0,
        0.75,
        0.75,
        0.5,
        0.5,
        0.25,
        0.0,
    ]
    assert profile.low is not None
    assert profile.high is not None
    # Three of four prompts: a resample has a binomial number of them, whose 2.5 % point is 1 of 4.
    assert profile.low[TAUS.index(1.0)] == 0.25
    assert profile.high[TAUS.index(1.0)] == 1.0


def test_runs_count_alike_in_a_profile() -> None:
    picks = np.random.default_rng(0).integers(0, 2, (500, 2))
    profile = profile_of([[10.0, 10.0], [15.0, 15.0]], picks=picks)
    assert profile.share(1.0) == 0.5
    # One run is drawn: all prompts or none.
    assert profile.low is not None
    assert profile.low[TAUS.index(1.0)] == 0.0


def test_one_prompt_has_a_profile_without_a_band() -> None:
    profile = profile_of([[10.0]])
    assert profile.share(1.0) == 1.0
    assert profile.low is None


def test_profiles_are_drawn_with_their_bands() -> None:
    axes = Figure().add_subplot()
    profile = profile_of([[10.0, 12.0, 15.0, 8.0]])
    colors = {"agent": "#000000", "bound": "#9A9A9A"}
    assert profile_lines(axes, {"agent": profile, "bound": profile}, colors, ["agent"], "nf4") is axes
    line = axes.get_lines()[0]
    assert line.get_label() == "agent"
    assert np.asarray(line.get_ydata()).tolist() == profile.shares.tolist()
    assert len(axes.collections) == 1
    assert (axes.get_title(loc="left"), axes.get_ylabel()) == ("nf4", "share of test prompts")


def test_small_p_values_are_given_by_their_bound() -> None:
    assert [format_p(p) for p in (0.00099, 0.001, 0.25)] == ["p<0.001", "p=0.001", "p=0.250"]
