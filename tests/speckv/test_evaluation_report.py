# SPDX-License-Identifier: Apache-2.0
"""What a comparison leaves on disk: the same bytes each time, and figures that explain themselves."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from speckv.agents.constants import FixedGamma
from speckv.evaluation.bootstrap import Interval
from speckv.evaluation.compare import Comparison, compare
from speckv.evaluation.metrics import ALL
from speckv.evaluation.plots import gamma_histogram, speedup_bars, speedup_dots, timeline
from speckv.evaluation.replays import AUTOREGRESSIVE, BEST_FIXED, CLAIRVOYANT, DecisionTime
from speckv.evaluation.report import (
    gamma_figure,
    make_timelines,
    pick_prompt,
    profile_figure,
    save_report,
    speedup_figure,
    timeline_figure,
)
from speckv.evaluation.results import PER_PROMPT_COLUMNS, comparison_json, headline, per_prompt_csv
from speckv.evaluation.text import render_comparison
from speckv.files import canonical_json
from speckv.replay import StepLog
from speckv.traces import TraceSet
from tests.fakes_traces import make_cost_table, random_traces

AGENT = FixedGamma(2)
SECTIONS = ("not distinguishable from", "by length of the prompt", "share of prompts by speed-up")


def splits() -> tuple[TraceSet, TraceSet]:
    traces = random_traces(num_prompts=24, tasks=("code", "chat", "math"), seed=1)
    return traces.select(split="train"), traces.select(split="test")


def compared(seed: int = 0) -> Comparison:
    train, test = splits()
    return compare(train=train, test=test, cost=make_cost_table(), controllers=[AGENT], num_resamples=200, seed=seed)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compared()


def test_same_seed_same_bytes(comparison: Comparison) -> None:
    text = canonical_json(comparison_json(comparison))
    assert text == canonical_json(comparison_json(compared()))
    assert text != canonical_json(comparison_json(compared(seed=1)))


def test_json_says_what_was_compared_and_what_came_out(comparison: Comparison) -> None:
    content = json.loads(canonical_json(comparison_json(comparison)))
    assert content["results_version"] == 1
    assert content["setting"]["cost"] == "fake"
    assert content["setting"]["cost_ratio"] == {"fp16": 0.125, "nf4": 0.25}
    assert content["controllers"] == [AGENT.name]
    assert len(content["groups"]) == 3 * 4
    (group,) = [g for g in content["groups"] if (g["compression"], g["task"]) == ("nf4", ALL)]
    assert group["num_prompts"] == 6
    assert len(group["rows"]) == 17 + 5
    (row,) = [r for r in group["rows"] if r["controller"] == AGENT.name]
    expected = comparison.group("nf4", ALL).row(AGENT.name)
    assert row["throughput_tokens_per_s"] == pytest.approx(expected.throughput, rel=1e-5)
    assert set(row["speedup_vs_best_fixed"]) == {"estimate", "low", "high"}
    chosen = content["gamma_histograms"][AGENT.name]["nf4"]
    assert chosen[2] == sum(chosen) > 0
    assert (content["setting"]["sampling"], content["setting"]["temperature"]) == ("greedy", 0.0)
    lengths = [part for part in content["prompt_lengths"] if part["compression"] == "fp16"]
    assert sum(part["num_prompts"] for part in lengths) == 6
    assert set(lengths[0]["tokens"]) == {"shortest_prompt", "longest_prompt", "longest_context"}
    assert {row["controller"] for row in lengths[0]["rows"]} == {AUTOREGRESSIVE, BEST_FIXED, AGENT.name, CLAIRVOYANT}
    profiles = content["performance_profiles"]
    assert profiles["speedups"][:2] == [0.6, 0.65]
    shares = {(p["controller"], p["compression"]): p["shares"] for p in profiles["profiles"]}
    assert set(shares) == {(name, c) for name in (AGENT.name, CLAIRVOYANT) for c in ("fp16", "nf4", ALL)}
    assert all(len(s) == len(profiles["speedups"]) and s == sorted(s, reverse=True) for s in shares.values())


def test_headline_is_one_line_of_json(comparison: Comparison) -> None:
    line = json.dumps(headline(comparison))
    figures = json.loads(line)["x_best_fixed"][AGENT.name]
    assert set(figures) == {"fp16", "nf4", ALL}
    expected = comparison.group(ALL).row(AGENT.name).geomean_vs_best_fixed
    assert figures[ALL]["estimate"] == pytest.approx(expected.estimate, rel=1e-5)
    assert len(line) < 600


def test_per_prompt_rows_add_up(comparison: Comparison) -> None:
    rows = list(csv.DictReader(per_prompt_csv(comparison).splitlines()))
    assert tuple(rows[0]) == PER_PROMPT_COLUMNS
    ours = [r for r in rows if r["controller"] == AGENT.name and r["compression"] == "fp16"]
    assert len(ours) <= 6
    throughput = sum(int(r["tokens"]) for r in ours) / sum(float(r["seconds"]) for r in ours)
    assert throughput == pytest.approx(comparison.group("fp16", ALL).row(AGENT.name).throughput)


def test_text_names_the_setting_the_columns_and_the_intervals(comparison: Comparison) -> None:
    text = render_comparison(comparison, [DecisionTime(controller="a", p50_us=5.0, p99_us=9.0)])
    for promised in (
        "fake-target",
        "cost ratio 0.125",
        "tok/s",
        "x best fixed",
        "headroom",
        "by task",
        "geomean",
        *SECTIONS,
    ):
        assert promised in text
    assert "95 % paired bootstrap" in text
    assert "decision time of a: p50 5.0 us, p99 9.0 us" in text
    assert max(len(line) for line in text.splitlines()) <= 130


@pytest.mark.figures
def test_a_report_is_whole(comparison: Comparison, tmp_path: Path) -> None:
    _, test = splits()
    timelines = make_timelines(comparison, test, make_cost_table(), AGENT)
    save_report(tmp_path, comparison, timelines=timelines)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "decision_times.json",
        "gamma.png",
        "per_prompt.csv",
        "profiles.png",
        "results.json",
        "results.txt",
        "speedup.png",
        "timeline.png",
        "x_best_fixed.png",
    ]
    pictures = [path.read_bytes() for path in tmp_path.glob("*.png")]
    assert all(picture[:4] == b"\x89PNG" and len(picture) > 5000 for picture in pictures)


def test_timelines_are_the_replays_of_one_prompt(comparison: Comparison) -> None:
    _, test = splits()
    timelines = make_timelines(comparison, test, make_cost_table(), AGENT)
    assert (timelines.prompt_id, timelines.compression) == pick_prompt(comparison)
    (sequence,) = test.select(prompt_ids=[timelines.prompt_id], compressions=[timelines.compression]).sequences
    for steps in (timelines.baseline, timelines.steps):
        assert steps.num_emitted.sum() == len(sequence.tokens) - 1
    row = comparison.grid.prompt_ids.index(timelines.prompt_id)
    ours = next(s for s in comparison.sums if s.name == AGENT.name)
    assert timelines.steps.seconds.sum() == pytest.approx(ours.seconds[row, 0])


def heights(axes: Axes) -> list[float]:
    return [p.get_height() for p in axes.patches if isinstance(p, Rectangle)]


def test_plots_draw_their_data_and_label_axes_with_units() -> None:
    figure = Figure()
    axes = figure.subplots(3)
    bars = {"ours": [Interval(estimate=1.5, low=1.2, high=1.9), Interval(estimate=0.9, low=None, high=None)]}
    assert speedup_bars(axes[0], bars, ["fp16", "nf4"]) is axes[0]
    assert heights(axes[0]) == [1.5, 0.9]
    assert axes[0].get_ylabel() == "speed-up over plain decoding (×)"

    counts = {"fp16": np.array([1.0, 3.0]), "nf4": np.array([0.0, 0.0])}
    assert gamma_histogram(axes[1], counts, {"fp16": 1, "nf4": 0}) is axes[1]
    assert heights(axes[1]) == [0.25, 0.75, 0.0, 0.0]
    assert "tokens" in axes[1].get_xlabel()

    zero, drafted, accepted, emitted = (np.array([n]) for n in (0, 5, 3, 4))
    step = StepLog(
        sequence=zero,
        position=zero,
        gamma=drafted,
        num_drafted=drafted,
        num_accepted=accepted,
        num_emitted=emitted,
        seconds=np.array([2.0]),
    )
    assert timeline(axes[2], step, "one") is axes[2]
    assert heights(axes[2]) == [3, 1, -2]
    assert axes[2].get_xlabel() == "decode time (s)"


def test_captions_give_prompts_and_intervals(comparison: Comparison) -> None:
    _, test = splits()
    timelines = make_timelines(comparison, test, make_cost_table(), AGENT)
    speedup, one = speedup_figure(comparison), timeline_figure(comparison, timelines)
    assert "n = 6 test prompts" in speedup.get_supxlabel()
    assert "95 %" in speedup.get_supxlabel()
    assert "n = 1 test prompt;" in one.get_supxlabel()
    assert "cost table fake" in gamma_figure(comparison, AGENT.name).get_supxlabel()


def test_profiles_show_those_that_rank_first(comparison: Comparison) -> None:
    figure = profile_figure(comparison)
    assert len(figure.axes) == 2
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [AGENT.name, CLAIRVOYANT]
    train, test = splits()
    many = [FixedGamma(g) for g in range(1, 9)]
    crowded = compare(train=train, test=test, cost=make_cost_table(), controllers=many, num_resamples=5)
    figure = profile_figure(crowded)
    assert len(figure.legends[0].get_texts()) == 6
    assert "Shown: the first 5 of 8 controllers" in figure.get_supxlabel().replace("\n", " ")


def test_many_controllers_get_a_line_each() -> None:
    axes = Figure().add_subplot()
    intervals = {f"c{k}": Interval(estimate=1.0 + k / 10, low=0.9 + k / 10, high=None) for k in range(20)}
    assert speedup_dots(axes, intervals, "nf4") is axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(intervals)
    assert axes.get_title(loc="left") == "nf4"
