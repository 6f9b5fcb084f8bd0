# SPDX-License-Identifier: Apache-2.0
"""Plots of a comparison. Each takes data and an Axes, draws, and returns the Axes; no global style is changed."""

from collections.abc import Collection, Mapping, Sequence
from functools import cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, get_font

from speckv.evaluation.bootstrap import Float64, Interval
from speckv.evaluation.entrants import TAUS, Profile
from speckv.replay import StepLog

# Okabe and Ito's palette: distinguishable for colour-blind readers and in grey print.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#9A9A9A"
INK = "#333333"
ACCEPTED, OWN, REJECTED = "#009E73", "#B5C7D3", "#D55E00"
_LABEL_LIMIT = 15


def tidy(ax: Axes) -> None:
    """Removes the top and right spine and draws the grid below the data."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.tick_params(colors=INK)
    ax.set_axisbelow(True)


def _bounds(intervals: Sequence[Interval]) -> tuple[Float64, Float64, Float64]:
    """The estimate stands for a bound that is missing."""
    estimates = np.array([i.estimate for i in intervals])
    low = np.array([i.estimate if i.low is None else i.low for i in intervals])
    high = np.array([i.estimate if i.high is None else i.high for i in intervals])
    return estimates, low, high


def speedup_dots(ax: Axes, speedups: Mapping[str, Interval], setting: str) -> Axes:
    """Dots of speed-up over plain decoding with intervals, from top to bottom; a line marks the first, the baseline."""
    names = [figure_text(name) for name in speedups]
    estimates, low, high = _bounds(list(speedups.values()))
    rows = np.arange(len(names))
    colours = [PALETTE[0] if estimate >= estimates[0] else PALETTE[1] for estimate in estimates]
    ax.hlines(rows, low, high, color=INK, linewidth=1.1)
    ax.scatter(estimates, rows, c=colours, s=22, zorder=3)
    ax.axvline(estimates[0], color=PALETTE[0], linewidth=1)
    ax.axvline(1.0, color=INK, linewidth=1, linestyle="--")
    ax.set_yticks(rows, names, fontsize=8)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_title(figure_text(setting), fontsize=10, loc="left")
    ax.set_xlabel("speed-up over plain decoding (×)", fontsize=9)
    ax.grid(axis="y", color="#E4E4E4", linewidth=0.6)
    tidy(ax)
    return ax


def ratio_dots(ax: Axes, ratios: Mapping[str, Interval], setting: str, *, bound: float | None = None) -> Axes:
    """Dots of speed-up over the best fixed gamma with intervals; a line at 1, a dashed one at the clairvoyant bound."""
    names = [figure_text(name) for name in ratios]
    estimates, low, high = _bounds(list(ratios.values()))
    rows = np.arange(len(names))
    colours = [PALETTE[0] if a > 1 else PALETTE[1] if b < 1 else GREY for a, b in zip(low, high, strict=True)]
    ax.hlines(rows, low, high, color=colours, linewidth=2)
    ax.scatter(estimates, rows, c=colours, s=26, zorder=3)
    ax.axvline(1.0, color=INK, linewidth=1)
    if bound is not None:
        ax.axvline(bound, color=INK, linewidth=1, linestyle="--")
        place = (bound, 1.0)
        ax.annotate("clairvoyant", place, xycoords=("data", "axes fraction"), fontsize=7, ha="right", va="bottom")
    ax.set_yticks(rows, names, fontsize=8)
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    ax.set_title(figure_text(setting), fontsize=10, loc="left", pad=14)
    ax.set_xlabel("x best fixed gamma", fontsize=9)
    ax.tick_params(axis="x", labelsize=8)
    ax.grid(axis="x", color="#E4E4E4", linewidth=0.6)
    tidy(ax)
    return ax


def learning_curve(ax: Axes, steps: Sequence[int], intervals: Mapping[str, Sequence[Interval]]) -> Axes:
    """Speed-up over the best fixed gamma on validation prompts over training, one line for each name; 1 is marked."""
    for index, (name, values) in enumerate(intervals.items()):
        estimates, low, high = _bounds(values)
        color = PALETTE[index % len(PALETTE)]
        ax.plot(steps, estimates, color=color, linewidth=1.6, marker="o", markersize=3, label=figure_text(name))
        ax.fill_between(steps, low, high, color=color, alpha=0.13, linewidth=0)
    ax.axhline(1.0, color=INK, linewidth=1)
    ax.set_xlabel("environment steps")
    ax.set_ylabel("speed-up over the best fixed gamma (×)")
    ax.grid(color="#E3E3E3", linewidth=0.8)
    ax.legend(frameon=False, fontsize=9)
    tidy(ax)
    return ax


def speedup_bars(ax: Axes, speedups: Mapping[str, Sequence[Interval]], settings: Sequence[str]) -> Axes:
    """Bars of speed-up over plain decoding, with intervals: a group of bars per setting, a colour per controller."""
    width = 0.8 / len(speedups)
    top = 1.0
    for index, (name, intervals) in enumerate(speedups.items()):
        places = np.arange(len(settings)) + (index - (len(speedups) - 1) / 2) * width
        heights, low, high = _bounds(intervals)
        ax.bar(
            places,
            heights,
            width * 0.92,
            color=PALETTE[index % len(PALETTE)],
            label=figure_text(name),
            yerr=np.maximum([heights - low, high - heights], 0.0),
            error_kw={"ecolor": INK, "elinewidth": 1.1, "capsize": 3, "capthick": 1.1},
        )
        if len(speedups) * len(settings) <= _LABEL_LIMIT:
            for place, height in zip(places, heights, strict=True):
                # At the foot, where no whisker or dashed line passes.
                ax.text(place, 0.06, f"{height:.2f}", color="white", fontsize=8, ha="center", va="bottom")
        top = max(top, float(high.max()))
    ax.axhline(1.0, color=INK, linewidth=1, linestyle="--")
    ax.annotate(
        "plain decoding",
        (1.0, 1.0),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        fontsize=8,
        va="center",
        color=INK,
    )
    ax.set_xticks(np.arange(len(settings)), [figure_text(name) for name in settings])
    ax.set_xlabel("compression of the target")
    ax.set_ylabel("speed-up over plain decoding (×)")
    ax.set_ylim(0, top * 1.16)
    ax.grid(axis="y", color="#E3E3E3", linewidth=0.8)
    ax.legend(loc="upper left", ncols=min(4, len(speedups)), frameon=False, fontsize=9)
    tidy(ax)
    return ax


def gamma_histogram(ax: Axes, counts: Mapping[str, Float64], best_fixed: Mapping[str, int]) -> Axes:
    """Share of decisions for each gamma, one colour per compression; triangles mark the best fixed gamma.

    `counts` holds for each compression the decisions by gamma, of shape [gamma_max + 1].
    """
    width = 0.8 / len(counts)
    peak = max(float((n / max(n.sum(), 1)).max()) for n in counts.values())
    for index, (name, by_gamma) in enumerate(counts.items()):
        color = PALETTE[index % len(PALETTE)]
        shift = (index - (len(counts) - 1) / 2) * width
        shares = by_gamma / max(by_gamma.sum(), 1)
        ax.bar(np.arange(len(by_gamma)) + shift, shares, width * 0.95, color=color, label=figure_text(name))
        gamma = best_fixed[name]
        ax.plot(gamma + shift, shares[gamma] + peak * 0.04, marker="v", color=color, markeredgecolor=INK, ls="none")
    handles, labels = ax.get_legend_handles_labels()
    handles += ax.plot([], [], marker="v", color="white", markeredgecolor=INK, ls="none")
    labels.append("best fixed gamma")
    deepest = max(len(n) for n in counts.values())
    ax.set_xticks(np.arange(deepest))
    ax.set_xlabel("gamma (tokens drafted per step)")
    ax.set_ylabel("share of decode steps")
    ax.set_ylim(0, peak * 1.15)
    ax.grid(axis="y", color="#E3E3E3", linewidth=0.8)
    ax.legend(handles, labels, facecolor="white", edgecolor="none", framealpha=1, fontsize=9)
    tidy(ax)
    return ax


def timeline(ax: Axes, steps: StepLog, title: str) -> Axes:
    """Decode steps of one prompt over time: kept tokens above the line, discarded drafted tokens below it."""
    starts = np.cumsum(steps.seconds) - steps.seconds
    accepted = steps.num_accepted
    # After an accepted end of text the target adds no token of its own.
    own = np.maximum(steps.num_emitted - accepted, 0)
    rejected = steps.num_drafted - accepted
    stacked = (
        (accepted, np.zeros_like(accepted), ACCEPTED, "drafted, accepted"),
        (own, accepted, OWN, "target's own token"),
        (-rejected, np.zeros_like(accepted), REJECTED, "drafted, thrown away"),
    )
    for heights, bottoms, color, label in stacked:
        ax.bar(
            starts,
            heights,
            steps.seconds,
            bottoms,
            align="edge",
            color=color,
            edgecolor="white",
            linewidth=0.6,
            label=label,
        )
    ax.axhline(0, color=INK, linewidth=0.8)
    ax.set_xlabel("decode time (s)")
    ax.set_ylabel("tokens per step")
    low, high = float(rejected.max(initial=0)), float((accepted + own).max(initial=1))
    ax.set_xlim(left=0)
    ax.set_ylim(-low - 0.5, high + 0.5)
    ax.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    ax.grid(axis="y", color="#E3E3E3", linewidth=0.8)
    ax.set_title(figure_text(title), fontsize=10, loc="left")
    tidy(ax)
    return ax


def figure_text(text: str) -> str:
    r"""Escapes what Matplotlib interprets or cannot draw: control and missing characters, `$`, a leading underscore.

    >>> figure_text("p7 (code)"), figure_text("提示1"), figure_text("a\n$b$"), figure_text("_base")
    ('p7 (code)', '\\u63d0\\u793a1', 'a\\n\\$b\\$', ' _base')
    """
    drawn = "".join(_drawn(character) for character in text)
    return f" {drawn}" if drawn.startswith("_") else drawn


@cache
def _drawn(character: str) -> str:
    if character == "$":
        return r"\$"
    font = get_font(findfont(FontProperties()))
    if character.isprintable() and font.get_char_index(ord(character)):
        return character
    return character.encode("unicode_escape").decode()


def profile_lines(
    ax: Axes, profiles: Mapping[str, Profile], colors: Mapping[str, str], banded: Collection[str], setting: str
) -> Axes:
    """Share of prompts that reach each speed-up over the best fixed gamma; `banded` labels get pointwise intervals."""
    for name, profile in profiles.items():
        if name in banded and profile.low is not None and profile.high is not None:
            ax.fill_between(TAUS, profile.low, profile.high, step="pre", color=colors[name], alpha=0.13, linewidth=0)
    for name, profile in profiles.items():
        # Between two speed-ups the share is at least that at the higher one.
        ax.step(TAUS, profile.shares, where="pre", color=colors[name], linewidth=1.6, label=figure_text(name))
    ax.axvline(1.0, color=INK, linewidth=1, linestyle="--")
    ax.set_xlim(TAUS[0], TAUS[-1])
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("speed-up over the best fixed gamma, at least (×)")
    ax.set_ylabel("share of test prompts")
    ax.set_title(figure_text(setting), fontsize=10, loc="left")
    ax.grid(color="#E3E3E3", linewidth=0.8)
    tidy(ax)
    return ax
