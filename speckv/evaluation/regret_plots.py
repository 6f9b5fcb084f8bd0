# SPDX-License-Identifier: Apache-2.0
"""Plots of regret over a stream of requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from speckv.evaluation.plots import GREY, INK, tidy

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineStyle:
    """How one learner is drawn: colours tell families apart, dashes the members."""

    color: str
    dashes: str = "-"


def regret_lines(
    ax: Axes,
    curves: Mapping[str, Float64],
    styles: Mapping[str, LineStyle],
    *,
    change: int,
    phases: tuple[str, str],
    kept: Float64,
    labels: Mapping[str, str],
) -> Axes:
    """Cumulative regret of each learner: the mean over orders, and a band from the least to the greatest order.

    Args:
        ax: Where to draw.
        curves: Learner -> regret in seconds, of shape [orders, requests].
        styles: Learner -> how it is drawn.
        change: First request of the second half; a line marks it.
        phases: What the requests of either half are.
        kept: Shape [requests]; regret of keeping the first half's constant, a dotted line.
        labels: Learner -> what stands behind the end of its line.
    """
    number = len(kept)
    for name, values in curves.items():
        _band(ax, values, styles[name])
    ax.axhline(0.0, color=INK, linewidth=1.0)
    ax.plot(np.concatenate([[0.0], kept]), color=INK, linestyle=":", linewidth=1.6)
    ax.axvline(change, color=INK, linestyle="--", linewidth=1.0)
    ax.set_xlim(0, number)
    top = ax.get_ylim()[1]
    for place, text in ((change / 2, phases[0]), ((change + number) / 2, phases[1])):
        ax.text(place, top, text, ha="center", va="bottom", fontsize=10, color=INK)
    ends = {name: float(values[:, -1].mean()) for name, values in curves.items()} | {"": float(kept[-1])}
    texts = dict(labels) | {"": "first half's constant, kept"}
    _label_ends(ax, number, ends, texts, {name: style.color for name, style in styles.items()} | {"": INK})
    ax.set_xlabel("requests")
    ax.set_ylabel("cumulative regret (s)")
    ax.grid(axis="y", color="#E4E4E4", linewidth=0.6)
    tidy(ax)
    return ax


def _band(ax: Axes, values: Float64, style: LineStyle) -> None:
    lines = np.concatenate([np.zeros((len(values), 1)), values], axis=1)
    requests = np.arange(lines.shape[1])
    ax.fill_between(requests, lines.min(axis=0), lines.max(axis=0), color=style.color, alpha=0.1, linewidth=0)
    ax.plot(requests, lines.mean(axis=0), color=style.color, linestyle=style.dashes, linewidth=1.5)


def _label_ends(
    ax: Axes, end: int, ends: Mapping[str, float], texts: Mapping[str, str], colors: Mapping[str, str]
) -> None:
    """Writes each line's name beside its end, pushed apart where names would overlap."""
    low, high = ax.get_ylim()
    order = sorted(ends, key=lambda name: ends[name])
    places = spread([ends[name] for name in order], gap=(high - low) * 0.052, low=low, high=high)
    for name, place in zip(order, places, strict=True):
        ax.annotate(
            texts[name],
            xy=(end, ends[name]),
            xytext=(end * 1.035, place),
            fontsize=8.5,
            color=colors[name],
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0},
        )


def spread(values: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Moves ascending values as little as is needed to stand apart, within bounds if there is room.

    Args:
        values: Ascending.
        gap: Least distance.
        low: Least result.
        high: Greatest result.

    >>> spread([0.0, 0.1, 5.0], gap=1.0, low=-10.0, high=10.0)
    [-0.45, 0.55, 5.0]
    """
    # Values that overlap join a block that is centred on their mean.
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value])
        while len(blocks) > 1 and _start(blocks[-1], gap, low, high) < _end(blocks[-2], gap, low, high) + gap:
            last = blocks.pop()
            blocks[-1] += last
    return [_start(block, gap, low, high) + k * gap for block in blocks for k in range(len(block))]


def _start(block: Sequence[float], gap: float, low: float, high: float) -> float:
    length = (len(block) - 1) * gap
    centred = sum(block) / len(block) - length / 2
    return max(low, min(centred, high - length))


def _end(block: Sequence[float], gap: float, low: float, high: float) -> float:
    return _start(block, gap, low, high) + (len(block) - 1) * gap
