# SPDX-License-Identifier: Apache-2.0
"""One figure: what the paper predicts beside what is realised, and what that is worth on the paper's clock."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from speckv.evaluation.paper.results import PolicyResult, Study
from speckv.evaluation.plots import GREY, INK, PALETTE

_DPI = 150
_SHOWN = ("Fixed-4", "Fixed-best, by tokens a step")


def bars(ax: Axes, heights: Mapping[str, Sequence[float]], groups: Sequence[str], colours: Sequence[str]) -> Axes:
    """Grouped bars with their heights written at their feet, where no line passes.

    Args:
        ax: Where to draw.
        heights: Series -> one height a group.
        groups: Names of the groups.
        colours: One a series.
    """
    width = 0.8 / len(heights)
    top = max(max(values) for values in heights.values())
    for index, (name, values) in enumerate(heights.items()):
        places = np.arange(len(groups)) + (index - (len(heights) - 1) / 2) * width
        ax.bar(places, values, width * 0.94, color=colours[index], label=name)
        for place, value in zip(places, values, strict=True):
            ax.text(place, 0.02 * top, f"{value:.2f}", ha="center", va="bottom", fontsize=7, color="white")
    ax.set_xticks(np.arange(len(groups)), groups, fontsize=8)
    ax.grid(axis="y", color="#E3E3E3", linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return ax


def _label(name: str) -> str:
    return name.replace(", ", "\n")


def study_figure(study: Study) -> Figure:
    """Predicted and realised tokens a step, and tokens a second over the constant that is best by time."""
    chosen: list[PolicyResult] = [p for p in study.policies if p.name in _SHOWN]
    chosen += [study.conditions[0].policy, study.conditions[-1].policy]
    reference = next(p for p in study.policies if p.name == "Fixed-best, by tokens a second").realised.tokens_per_s
    figure = Figure(figsize=(13, 4.8), dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    predicted = [p.predicted.mean if p.predicted else 0.0 for p in chosen]
    realised = [p.realised.tokens_per_step for p in chosen]
    heights = {"predicted by its own network": predicted, "realised": realised}
    bars(left, heights, [_label(p.name) for p in chosen], (GREY, PALETTE[0]))
    left.set_ylabel("tokens per step")
    left.set_ylim(0, 1.18 * max(*predicted, *realised))
    left.legend(loc="upper left", ncols=2, frameon=False, fontsize=8)
    left.set_title("What the paper counts, and what is realised", fontsize=10, loc="left")
    speeds = {p.name: (p.realised.tokens_per_s / reference).tolist() for p in chosen}
    bars(right, speeds, study.records.compressions, PALETTE)
    right.axhline(1.0, color=INK, linewidth=1, linestyle="--")
    right.set_ylabel("tokens/s over the best fixed gamma (×)")
    right.set_xlabel("compression of the target")
    right.set_ylim(0, 1.35)
    right.legend(loc="upper left", ncols=2, frameon=False, fontsize=8)
    right.set_title("On the paper's own clock", fontsize=10, loc="left")
    gammas = ", ".join(map(str, study.records.gammas))
    figure.supxlabel(
        f"SpecKV paper's released log: {len(study.records.prompt_tasks)} prompts, gammas {gammas}, no key-value cache. "
        f"Means over {len(study.seeds)} seeds; with the paper's own, SpecKV-fast predicts "
        f"{study.recomputed.policies[-1, -1]:.2f}. Best fixed gamma: of most tokens/s, by compression.",
        fontsize=8,
    )
    return figure
