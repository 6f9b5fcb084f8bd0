# SPDX-License-Identifier: Apache-2.0
"""README's picture, from the committed comparisons: python -m benchmarks.readme_figure."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.readme_table import RULES, best_rule, group, load
from speckv.evaluation.plots import INK, PALETTE, tidy
from speckv.evaluation.report import save_figure

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "x-best-fixed.png"
COSTS = {"cpu-2core": "two CPU cores (measured times)", "rtx3090-paper": "RTX 3090 (times fitted to a published log)"}
COMPRESSIONS = ("fp16", "int8", "nf4")
ROWS = {
    "survival-stopping": "supervised, token by token\n(shipped)",
    "ppo-stopping": "PPO, token by token",
    "rule": "best published rule, tuned",
    "ppo": "PPO, once a step",
}


def draw() -> Figure:
    """Speed-up over the best fixed gamma: a panel a cost table, a colour a compression."""
    figure = Figure(figsize=(10, 3.7), dpi=150, layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(COSTS), sharex=True, sharey=True)
    for ax, (name, title) in zip(panels, COSTS.items(), strict=True):
        comparison = load(name)
        for place, compression in enumerate(COMPRESSIONS):
            rows = group(comparison, compression)
            found = {key: rows[key] for key in ROWS if key in rows}
            found["rule"] = best_rule(rows, tuned=True)
            values = [found[key]["speedup_vs_best_fixed"] for key in ROWS]
            y = np.arange(len(ROWS)) + 0.22 * (place - 1)
            low, high, middle = (np.array([v[key] for v in values]) for key in ("low", "high", "estimate"))
            color = PALETTE[place]
            ax.hlines(y, low, high, color=color, linewidth=2)
            gamma = comparison["best_fixed_gammas"][compression]
            ax.scatter(middle, y, color=color, s=30, zorder=3, label=f"{compression} (best fixed gamma {gamma})")
        ax.axvline(1.0, color=INK, linewidth=1.2)
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_xlabel("speed-up over the best fixed gamma (×)", fontsize=9)
        ax.set_yticks(np.arange(len(ROWS)), list(ROWS.values()), fontsize=9)
        ax.set_ylim(len(ROWS) + 0.5, -0.5)  # room for the legend
        ax.grid(axis="x", color="#E4E4E4", linewidth=0.6)
        ax.legend(fontsize=8, loc="lower right", framealpha=1, edgecolor="none")
        tidy(ax)
    figure.supxlabel(
        f"120 test prompts, recorded decoding of Qwen2.5-Coder-1.5B with its 0.5B draft; lines: 95 % intervals over "
        f"prompts. Best of {len(RULES)} rules, in hindsight.",
        fontsize=8,
        color=INK,
    )
    return figure


if __name__ == "__main__":
    save_figure(draw(), PICTURE)
