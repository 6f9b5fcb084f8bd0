# SPDX-License-Identifier: Apache-2.0
"""Writes a comparison into a folder: text, JSON, CSV and figures."""

import copy
import io
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from speckv.cost import CostTable
from speckv.evaluation.compare import Comparison
from speckv.evaluation.metrics import ALL
from speckv.evaluation.plots import (
    GREY,
    PALETTE,
    figure_text,
    gamma_histogram,
    profile_lines,
    ratio_dots,
    speedup_bars,
    speedup_dots,
    timeline,
)
from speckv.evaluation.replays import BEST_FIXED, CLAIRVOYANT, DecisionTime, compile_pair
from speckv.evaluation.results import comparison_json, per_prompt_csv
from speckv.evaluation.summary import too_few
from speckv.evaluation.text import render_comparison
from speckv.files import canonical_json, write_atomically
from speckv.replay import StepLog, replay_controller, replay_fixed, replay_stream
from speckv.traces import TraceSet
from speckv.types import Controller, OnlineLearner

RESULTS, TEXT, PER_PROMPT = "results.json", "results.txt", "per_prompt.csv"
"""Files of a saved comparison that are read again."""
FIRST_FIGURE = "x_best_fixed.png"
MOST_BARS = 6
"""Most controllers in a bar plot; more are drawn as dots."""
MOST_PROFILES = 5
MOST_BANDS = 3
"""Most overlapping interval bands; with more profiles only the first has one."""
_DPI = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class Timelines:
    """One prompt decoded with the best fixed gamma (`baseline`) and by a controller (`steps`)."""

    prompt_id: str
    task: str
    compression: str
    baseline_gamma: int
    baseline: StepLog
    controller: str
    steps: StepLog


def pick_prompt(comparison: Comparison) -> tuple[str, str]:
    """Id of the prompt nearest to the controller's median speed-up, and the first compression it was recorded at."""
    grid = comparison.grid
    by_name = {s.name: s for s in comparison.sums}
    ours, fixed = by_name[comparison.main_controller].seconds[:, 0], by_name[BEST_FIXED].seconds[:, 0]
    recorded = np.flatnonzero(ours)
    ratio = fixed[recorded] / ours[recorded]
    nearest_to_median = recorded[np.abs(ratio - np.median(ratio)).argmin()]
    return grid.prompt_ids[int(nearest_to_median)], grid.compressions[0]


def make_timelines(comparison: Comparison, test: TraceSet, cost: CostTable, controller: Controller) -> Timelines:
    """Replays one prompt with the best fixed gamma and with the controller."""
    prompt_id, compression = pick_prompt(comparison)
    one = test.select(prompt_ids=[prompt_id], compressions=[compression])
    compiled, compiled_cost = compile_pair(one, cost)
    gamma = comparison.best_fixed_gammas[compression]
    fixed = replay_fixed(compiled, compiled_cost, gamma, log=True).log
    replay = replay_stream if isinstance(controller, OnlineLearner) else replay_controller
    steps = replay(copy.deepcopy(controller), compiled, compiled_cost, log=True).log
    assert fixed is not None
    assert steps is not None
    return Timelines(
        prompt_id=prompt_id,
        task=one.tasks[0],
        compression=compression,
        baseline_gamma=gamma,
        baseline=fixed,
        controller=controller.name,
        steps=steps,
    )


def best_fixed_figure(comparison: Comparison) -> Figure:
    """Speed-up over the best fixed gamma of each controller, with intervals: a panel a compression, best first."""
    names = list(comparison.grid.compressions)
    panels = [*names, ALL] if len(names) > 1 else names
    whole = comparison.group(panels[-1])
    entrants = sorted(comparison.entrants, key=lambda name: -whole.row(name).geomean_vs_best_fixed.estimate)
    figure = Figure(
        figsize=(1.8 + 2.7 * len(panels), 1.9 + 0.26 * max(len(entrants), 1)), dpi=_DPI, layout="constrained"
    )
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        result = comparison.group(panel)
        ratios = {name: result.row(name).geomean_vs_best_fixed for name in entrants}
        title = "all, geometric mean" if panel == ALL else f"{panel}, best fixed {comparison.best_fixed_gammas[panel]}"
        ratio_dots(ax, ratios, title, bound=result.row(CLAIRVOYANT).geomean_vs_best_fixed.estimate)
    intervals = "Lines: 95 % bootstrap intervals over prompts, paired with the best fixed gamma."
    _caption(figure, comparison, too_few(comparison) or intervals)
    return figure


def speedup_figure(comparison: Comparison) -> Figure:
    """Speed-up over plain decoding of the best fixed gamma, the controllers and the bound: bars if few, else dots."""
    compressions = comparison.grid.compressions
    names = (BEST_FIXED, *comparison.entrants, CLAIRVOYANT)
    speedups = {name: [comparison.group(c, ALL).row(name).speedup_vs_ar for c in compressions] for name in names}
    if len(names) <= MOST_BARS:
        figure = Figure(figsize=(8.4, 4.6), dpi=_DPI, layout="constrained")
        speedup_bars(figure.add_subplot(), speedups, compressions)
    else:
        figure = Figure(figsize=(10, 1.6 + 0.24 * len(names)), dpi=_DPI, layout="constrained")
        panels = figure.subplots(1, len(compressions), sharey=True, squeeze=False)[0]
        for column, (axes, compression) in enumerate(zip(panels, compressions, strict=True)):
            speedup_dots(axes, {name: intervals[column] for name, intervals in speedups.items()}, compression)
    _caption(figure, comparison, "Whiskers: 95 % bootstrap intervals over prompts, paired with plain decoding.")
    return figure


def gamma_figure(comparison: Comparison, controller: str) -> Figure:
    """Histogram of the gammas that a controller chose."""
    figure = Figure(figsize=(8.4, 4.2), dpi=_DPI, layout="constrained")
    sums = next(s for s in comparison.sums if s.name == controller)
    counts = {c: sums.gammas[:, k].sum(axis=0) for k, c in enumerate(comparison.grid.compressions)}
    axes = gamma_histogram(figure.add_subplot(), counts, comparison.best_fixed_gammas)
    axes.set_title(figure_text(f"gamma chosen by {controller}"), fontsize=10, loc="left")
    _caption(figure, comparison, f"{int(sums.steps.sum())} decode steps, counted as asked for.")
    return figure


def profile_figure(comparison: Comparison) -> Figure:
    """Performance profiles of the first-ranked controllers over all compressions, and of the bound."""
    overall = comparison.group(ALL, ALL)
    ranked = sorted(comparison.entrants, key=lambda name: -overall.row(name).geomean_vs_best_fixed.estimate)
    shown = ranked[:MOST_PROFILES]
    colors = dict(zip(shown, PALETTE, strict=False)) | {CLAIRVOYANT: GREY}
    banded = shown if len(shown) <= MOST_BANDS else shown[:1]
    compressions = comparison.grid.compressions
    figure = Figure(figsize=(1.2 + 4.2 * len(compressions), 4.6), dpi=_DPI, layout="constrained")
    panels = figure.subplots(1, len(compressions), sharey=True, squeeze=False)[0]
    for axes, compression in zip(panels, compressions, strict=True):
        profiles = {name: comparison.profile(name, compression) for name in colors}
        profile_lines(axes, profiles, colors, banded, compression)
    for axes in panels[1:]:
        axes.set_ylabel("")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9
    )
    few = f" Shown: the first {len(shown)} of {len(ranked)} controllers." if len(ranked) > len(shown) else ""
    whose = "" if banded == shown else f" of {banded[0]}"
    bands = f"Band{whose}: 95 % bootstrap interval at each speed-up by itself." if banded else ""
    _caption(figure, comparison, f"{bands}{few}")
    return figure


def timeline_figure(comparison: Comparison, timelines: Timelines) -> Figure:
    """One prompt with the best fixed gamma and with a controller, on one time axis."""
    figure = Figure(figsize=(10, 5.2), dpi=_DPI, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, sharey=True)
    fixed = f"best fixed gamma {timelines.baseline_gamma}"
    timeline(above, timelines.baseline, _panel_title(fixed, timelines.baseline))
    timeline(below, timelines.steps, _panel_title(timelines.controller, timelines.steps))
    logs = (timelines.baseline, timelines.steps)
    low = max(int((log.num_drafted - log.num_accepted).max()) for log in logs)
    high = max(int(log.num_emitted.max()) for log in logs)
    above.set_ylim(-low - 0.5, high + 0.5)
    above.set_xlabel("")
    figure.legend(*above.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    _caption(
        figure,
        comparison,
        f"One bar a decode step, as wide as it took. Prompt {timelines.prompt_id} ({timelines.task}, "
        f"{timelines.compression}), the one nearest to the median speed-up.",
        num_prompts=1,
    )
    return figure


def _panel_title(name: str, log: StepLog) -> str:
    return f"{name}: {log.num_emitted.sum()} tokens, {len(log.seconds)} steps, {log.seconds.sum():.2f} s"


def _caption(figure: Figure, comparison: Comparison, text: str, *, num_prompts: int | None = None) -> None:
    setting = comparison.setting
    count = setting.test_prompts if num_prompts is None else num_prompts
    prompts = f"n = {count} test prompt{'s' if count > 1 else ''}"
    whole = f"{prompts}; times from cost table {setting.clock}. {text}"
    figure.supxlabel(textwrap.fill(figure_text(whole), int(13 * figure.get_figwidth())), fontsize=8)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def save_report(
    folder: Path,
    comparison: Comparison,
    *,
    times: Sequence[DecisionTime] = (),
    timelines: Timelines | None = None,
) -> None:
    """Writes `results.json`, `results.txt`, `per_prompt.csv`, `decision_times.json` and the figures.

    All but the decision times (and their lines in the text) are the same bytes for the same comparison.
    """
    write_atomically(folder / RESULTS, canonical_json(comparison_json(comparison)))
    write_atomically(folder / TEXT, render_comparison(comparison, times))
    write_atomically(folder / PER_PROMPT, per_prompt_csv(comparison))
    write_atomically(folder / "decision_times.json", canonical_json({"decision_times": [asdict(t) for t in times]}))
    save_figure(best_fixed_figure(comparison), folder / FIRST_FIGURE)
    save_figure(speedup_figure(comparison), folder / "speedup.png")
    save_figure(gamma_figure(comparison, comparison.main_controller), folder / "gamma.png")
    save_figure(profile_figure(comparison), folder / "profiles.png")
    if timelines is not None:
        save_figure(timeline_figure(comparison, timelines), folder / "timeline.png")
