# SPDX-License-Identifier: Apache-2.0
"""Prints README's result table from the committed comparisons.

    python -m benchmarks.readme_table

Reads `benchmarks/results/zoo-*.json`, which `make results` writes.
"""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
COSTS = ("cpu-2core", "rtx3090-paper")
SHOWN = {
    "ppo": "PPO, once a step",
    "ppo-stopping": "PPO, token by token",
}

logger = logging.getLogger(__name__)
Row = Mapping[str, Any]


def load(cost: str) -> dict[str, Any]:
    """Reads one committed comparison."""
    content: dict[str, Any] = json.loads((RESULTS / f"zoo-{cost}.json").read_text(encoding="utf-8"))
    return content


def group(comparison: Mapping[str, Any], compression: str) -> Mapping[str, Row]:
    """Rows of one compression over all tasks, by controller."""
    (found,) = [g for g in comparison["groups"] if (g["compression"], g["task"]) == (compression, "all")]
    return {row["controller"]: row for row in found["rows"]}


def interval(row: Row, key: str = "speedup_vs_best_fixed") -> str:
    """Renders a ratio with its bounds."""
    value = row[key]
    if value["low"] is None:
        return f"{value['estimate']:.3f}"
    return f"{value['estimate']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def columns(comparison: Mapping[str, Any], compression: str) -> list[str]:
    """Cells of one column, from top to bottom."""
    rows = group(comparison, compression)
    best, bound = rows["best-fixed"], rows["clairvoyant"]
    return [
        f"{comparison['setting']['cost_ratio'][compression]:.2f}",
        f"{comparison['best_fixed_gammas'][compression]}: {best['speedup_vs_ar']['estimate']:.2f} x",
        *(interval(rows[name]) for name in SHOWN),
        f"{bound['speedup_vs_best_fixed']['estimate']:.3f}",
    ]


def render() -> str:
    """The table in Markdown: a row a controller, a column a clock and compression."""
    labels = [
        "draft pass / target pass",
        "best fixed gamma, and its speed-up over plain decoding",
        *SHOWN.values(),
        "clairvoyant bound",
    ]
    head, cells = ["x best fixed gamma [95 %]"], []
    for cost in COSTS:
        comparison = load(cost)
        for compression in comparison["best_fixed_gammas"]:
            head.append(f"`{cost}` {compression}")
            cells.append(columns(comparison, compression))
    lines = [
        head,
        ["---"] * len(head),
        *([label, *row] for label, row in zip(labels, zip(*cells, strict=True), strict=True)),
    ]
    return "\n".join(_line(line) for line in lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Prints the table."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logger.info(render())


if __name__ == "__main__":
    main()
