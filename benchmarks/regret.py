# SPDX-License-Identifier: Apache-2.0
"""Regret of online learners on a stream of requests whose kind changes half-way, and its plot.

The text does not depend on the controller, so two controllers decode the same tokens of a request and their seconds
compare directly. A half's reference is its best constant gamma in hindsight, which is not known beforehand. Negative
regret means that a learner does better than any constant could.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from speckv.errors import ConfigError
from speckv.evaluation.plots import GREY, INK, tidy

Float64 = NDArray[np.float64]
IntArray = NDArray[np.int64]

WINDOW = 10
"""Requests over which a pace is measured."""
TAIL = 20
"""Requests at the end of a half that define a learner's final pace."""
TOLERANCE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Hindsight:
    """The constants that a learner is compared with.

    Attributes:
        gammas: Best constant of each half.
        reference: Shape [requests]; seconds of each request under its half's constant.
        kept: Shape [requests]; seconds under the first half's constant in both halves.
    """

    gammas: tuple[int, int]
    reference: Float64
    kept: Float64


def hindsight(by_gamma: Float64, change: int) -> Hindsight:
    """Finds each half's best constant by total seconds; ties go to the smaller gamma.

    Args:
        by_gamma: Shape [gammas, requests]; seconds of each request under each constant, from 0.
        change: First request of the second half.
    """
    first, second = (int(part.sum(axis=1).argmin()) for part in (by_gamma[:, :change], by_gamma[:, change:]))
    reference = np.concatenate([by_gamma[first, :change], by_gamma[second, change:]])
    return Hindsight(gammas=(first, second), reference=reference, kept=by_gamma[first])


def cumulative_regret(seconds: Float64, reference: Float64) -> Float64:
    """Seconds lost to the reference up to and including each request, along the last axis."""
    regret: Float64 = np.cumsum(seconds - reference, axis=-1)
    return regret


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How long a learner took to reach its own final pace.

    Attributes:
        requests: Whole requests before that; 0 if it started at that pace.
        steps: Decode steps of those requests, a mean over orders.
        level: Its final pace: the reference's seconds over its own.
    """

    requests: int
    steps: float
    level: float


def recovery(
    seconds: Float64,
    reference: Float64,
    steps: IntArray,
    *,
    window: int = WINDOW,
    tail: int = TAIL,
    tolerance: float = TOLERANCE,
) -> Recovery:
    """Measures when a learner has come within a tolerance of the pace that it ends one half of a stream with.

    Pace is the reference's seconds over the learner's on the same requests, so hard and easy prompts weigh alike, with
    sums over all orders: one order's window is too noisy for 2 %. The learner has recovered after r requests if the
    window of requests that begins there is at most `tolerance` below the pace of the last `tail` requests; the first
    such r counts. It always exists, because the tail consists of windows. A learner that settles on a poor pace
    recovers quickly, so the level must be read as well.

    Args:
        seconds: Shape [orders, requests]; the learner's, of one half.
        reference: The same shape.
        steps: The same shape; the learner's decode steps.
        window: Requests over which a pace is measured.
        tail: Requests that define the final pace; a multiple of `window`.
        tolerance: In [0, 1).

    Raises:
        ConfigError: if the half is too short, or the tail is not made of windows.
    """
    number = seconds.shape[1]
    if window < 1 or tail < window or tail % window or number < tail:
        raise ConfigError(
            f"Expected a tail of whole windows, at most as long as the half of {number} requests, "
            f"got tail {tail} and window {window}."
        )
    ours, theirs = seconds.sum(axis=0), reference.sum(axis=0)
    level = float(theirs[-tail:].sum() / ours[-tail:].sum())
    pace = _window_sums(theirs, window) / _window_sums(ours, window)
    # The tail's best window is at least as fast as the whole of it, but for rounding.
    requests = int((pace >= (1.0 - tolerance) * level * (1.0 - 1e-12)).argmax())
    return Recovery(requests=requests, steps=float(steps[:, :requests].sum(axis=1).mean()), level=level)


def _window_sums(values: Float64, window: int) -> Float64:
    sums: Float64 = np.convolve(values, np.ones(window), mode="valid")
    return sums


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerRegret:
    """One learner on one stream.

    Attributes:
        curves: Shape [orders, requests]; cumulative regret in seconds.
        first: Regret of the first half over the reference's time in it, all orders together.
        second: The same for the second half.
        over_clairvoyant: Time over the clairvoyant's in the whole stream, minus one.
        start: Recovery in the first half, without prior learning.
        change: Recovery in the second half.
    """

    curves: Float64
    first: float
    second: float
    over_clairvoyant: float
    start: Recovery
    change: Recovery


def learner_regret(
    seconds: Float64, steps: IntArray, reference: Float64, clairvoyant: Float64, change: int
) -> LearnerRegret:
    """Regret and recovery of a learner's runs.

    Args:
        seconds: Shape [orders, requests]; the learner's.
        steps: The same shape; its decode steps.
        reference: The same shape; best constant of each half.
        clairvoyant: The same shape; least possible.
        change: First request of the second half.
    """
    before, after = np.s_[:, :change], np.s_[:, change:]

    def relative(part: tuple[slice, slice]) -> float:
        return float(seconds[part].sum() / reference[part].sum() - 1.0)

    return LearnerRegret(
        curves=cumulative_regret(seconds, reference),
        first=relative(before),
        second=relative(after),
        over_clairvoyant=float(seconds.sum() / clairvoyant.sum() - 1.0),
        start=recovery(seconds[before], reference[before], steps[before]),
        change=recovery(seconds[after], reference[after], steps[after]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LineStyle:
    """How one learner is drawn: a colour per family, dashes per member."""

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
        curves: Learner -> regret in seconds, of shape [orders, requests].
        styles: Learner -> how it is drawn.
        change: First request of the second half; a line marks it.
        phases: Kind of the requests of either half.
        kept: Shape [requests]; regret of keeping the first half's constant, a dotted line.
        labels: Learner -> label at the end of its line.
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
    """Writes each line's label beside its end, moved apart where labels would overlap."""
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
    """Moves ascending values as little as needed for the least distance `gap`, within bounds if there is room."""
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
