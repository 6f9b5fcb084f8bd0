# SPDX-License-Identifier: Apache-2.0
"""Plots of performance profiles."""

from collections.abc import Collection, Mapping

from matplotlib.axes import Axes

from speckv.evaluation.figure_text import figure_text
from speckv.evaluation.plots import INK, tidy
from speckv.evaluation.profiles import TAUS, Profile


def profile_lines(
    ax: Axes, profiles: Mapping[str, Profile], colors: Mapping[str, str], banded: Collection[str], setting: str
) -> Axes:
    """Share of prompts that reach each speed-up over the best fixed gamma, with bands of pointwise intervals.

    Args:
        ax: Where to draw.
        profiles: Label -> profile.
        colors: Label -> colour.
        banded: Labels of those whose intervals are drawn.
        setting: Title of the panel.
    """
    for name, profile in profiles.items():
        if name in banded and profile.low is not None and profile.high is not None:
            ax.fill_between(TAUS, profile.low, profile.high, color=colors[name], alpha=0.13, linewidth=0)
    for name, profile in profiles.items():
        ax.plot(TAUS, profile.shares, color=colors[name], linewidth=1.6, label=figure_text(name))
    ax.axvline(1.0, color=INK, linewidth=1, linestyle="--")
    ax.set_xlim(TAUS[0], TAUS[-1])
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("speed-up over the best fixed gamma, at least (×)")
    ax.set_ylabel("share of test prompts")
    ax.set_title(figure_text(setting), fontsize=10, loc="left")
    ax.grid(color="#E3E3E3", linewidth=0.8)
    tidy(ax)
    return ax
