# SPDX-License-Identifier: Apache-2.0
"""A study's picture: a line an arm, its interval, and a dot a seed."""

from collections.abc import Mapping
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure

from speckv.evaluation.plots import INK, PALETTE, figure_text, tidy

_DPI = 150
_TITLE_WIDTH, _NAME_WIDTH = 100, 40
"""Characters of a line, above the axes and at their side."""


def draw(record: Mapping[str, Any]) -> Figure:
    """Speed-up over the best fixed gamma of every arm.

    Args:
        record: As `study.json` holds it.
    """
    outcomes = record["outcomes"]
    names = [fill(figure_text(outcome["name"]), _NAME_WIDTH) for outcome in outcomes]
    lines = max(name.count("\n") for name in names) + 1
    height = 1.7 + (0.17 + 0.17 * lines) * len(outcomes)
    figure = Figure(figsize=(8.4, height), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    for row, outcome in enumerate(outcomes):
        mean = outcome["over_best_fixed"]
        colour = PALETTE[0] if row == 0 else PALETTE[1]
        low, high = (mean[key] if mean[key] is not None else mean["estimate"] for key in ("low", "high"))
        axes.hlines(row, low, high, color=INK, linewidth=1.2)
        axes.scatter(outcome["by_seed"], [row] * len(outcome["by_seed"]), s=10, color="#9A9A9A", zorder=2)
        axes.scatter([mean["estimate"]], [row], s=34, color=colour, zorder=3)
    first = outcomes[0]["over_best_fixed"]["estimate"]
    axes.axvline(first, color=PALETTE[0], linewidth=1)
    axes.axvline(1.0, color=INK, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(outcomes)), names, fontsize=9)
    axes.set_ylim(len(outcomes) - 0.5, -0.5)
    figure.suptitle(fill(figure_text(record["question"]), _TITLE_WIDTH), fontsize=10, x=0.01, ha="left")
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.6)
    tidy(axes)
    figure.supxlabel(
        "throughput over the best fixed gamma (×); dashed: that gamma itself\n"
        f"n = {record['test_prompts']} test prompts, {len(record['seeds'])} seed(s), small dots; times from cost table "
        f"{figure_text(record['cost']['name'])}. Whiskers: 95 % bootstrap intervals over prompts and seeds.",
        fontsize=8,
    )
    return figure
