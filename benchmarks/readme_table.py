# SPDX-License-Identifier: Apache-2.0
"""The headline tables of README and docs/results, from the committed comparisons `benchmarks/results/zoo-*.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speckv.cost import describe_fit

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = {"cpu-2core": "`cpu-2core`", "rtx3090-paper": "`rtx3090-paper`", "t1": "`cpu-2core`, temperature 1,"}
"""Comparison -> how its columns begin."""
SHOWN = {
    "ppo": "PPO, once a step",
    "ppo-stopping": "PPO, token by token",
    "survival": "supervised, once a step",
    "survival-stopping": "**supervised, token by token**",
    "calibrated-stopping": "logistic model refitted online, token by token",
    "hazard-thompson": "bandit (hazard Thompson), online, once a step",
}
RULES = (
    "adaedl",
    "gammatune",
    "goodput",
    "kangaroo",
    "llama-cpp",
    "sglang-ema",
    "svip",
    "transformers-confidence",
    "transformers-heuristic",
)
WITHOUT_GRID = ("goodput",)
"""Rules with nothing to tune: they stand among the tuned ones as they are."""

Row = Mapping[str, Any]


def load(name: str) -> dict[str, Any]:
    """Reads one committed comparison."""
    content: dict[str, Any] = json.loads((RESULTS / f"zoo-{name}.json").read_text(encoding="utf-8"))
    return content


def group(comparison: Mapping[str, Any], compression: str) -> Mapping[str, Row]:
    """Rows of one compression over all tasks, by controller."""
    (found,) = [g for g in comparison["groups"] if (g["compression"], g["task"]) == (compression, "all")]
    return {row["controller"]: row for row in found["rows"]}


def interval(row: Row, key: str = "speedup_vs_best_fixed") -> str:
    """Renders a row's ratio with its bounds."""
    return show_interval(row[key])


def show_interval(value: Row) -> str:
    """Renders a ratio with its bounds."""
    if value["low"] is None:
        return f"{value['estimate']:.3f}"
    return f"{value['estimate']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def check(setting: Mapping[str, Any], compression: str) -> str:
    """How well a cost table's times add up to live runs; results from before tables were checked say nothing of it."""
    checks: Mapping[str, str] = setting.get("cost_check") or {}
    return checks.get(compression) or describe_fit(setting["cost_kind"], None)


def best_rule(rows: Mapping[str, Row], *, tuned: bool) -> Row:
    """The published rule of highest throughput, at its defaults or tuned."""
    names = [f"{rule}, tuned" if tuned and rule not in WITHOUT_GRID else rule for rule in RULES]
    found = [rows[name] for name in names]
    return max(found, key=lambda row: float(row["throughput_tokens_per_s"]))


def columns(comparison: Mapping[str, Any], compression: str) -> list[str]:
    """Cells of one column, from top to bottom."""
    rows = group(comparison, compression)
    best, bound = rows["best-fixed"], rows["clairvoyant"]
    default, tuned = best_rule(rows, tuned=False), best_rule(rows, tuned=True)
    return [
        check(comparison["setting"], compression),
        f"{comparison['setting']['cost_ratio'][compression]:.2f}",
        f"{comparison['best_fixed_gammas'][compression]}: {best['speedup_vs_ar']['estimate']:.2f} x",
        *(interval(rows[name]) for name in SHOWN),
        f"{interval(tuned)} ({tuned['controller'].removesuffix(', tuned')})",
        f"{interval(default)} ({default['controller']})",
        f"{bound['speedup_vs_best_fixed']['estimate']:.3f}",
    ]


def render() -> str:
    """The table in Markdown: a row a controller, a column a clock and compression."""
    labels = [
        "times against live runs",
        "draft pass / target pass",
        "best fixed gamma, and its speed-up over plain decoding",
        *SHOWN.values(),
        "best published rule, tuned",
        "best published rule, defaults",
        "clairvoyant bound",
    ]
    head, cells = ["x best fixed gamma [95 %]"], []
    for name, beginning in COLUMNS.items():
        comparison = load(name)
        for compression in comparison["best_fixed_gammas"]:
            head.append(f"{beginning} {compression}")
            cells.append(columns(comparison, compression))
    lines = [
        head,
        ["---"] * len(head),
        *([label, *row] for label, row in zip(labels, zip(*cells, strict=True), strict=True)),
    ]
    return "\n".join(line(cells) for cells in lines)


SHORT = {
    "survival-stopping": "the same kind, fitted to the cost table",
    "ppo": "PPO, once a step",
}
SHIPPED = "**shipped**: supervised, token by token, learns the times"


def load_shipped(name: str) -> dict[str, Any]:
    """Reads the comparison of the shipped policy: `speckv evaluate controllers=shipped cost=NAME`."""
    content: dict[str, Any] = json.loads((RESULTS / f"shipped-{name}.json").read_text(encoding="utf-8"))
    return content


def render_short() -> str:
    """README's table: at most six rows, for the two shipped cost tables."""
    head, cells = ["x best fixed gamma [95 %]"], []
    for name in ("cpu-2core", "rtx3090-paper"):
        comparison, shipped = load(name), load_shipped(name)
        for compression, gamma in comparison["best_fixed_gammas"].items():
            rows = group(comparison, compression)
            tuned = best_rule(rows, tuned=True)
            head.append(f"`{name}` {compression}")
            cells.append(
                [
                    f"gamma {gamma}: {rows['best-fixed']['speedup_vs_ar']['estimate']:.2f} x plain",
                    interval(group(shipped, compression)["self-timed"]),
                    *(interval(rows[key]) for key in SHORT),
                    f"{interval(tuned)} ({tuned['controller'].removesuffix(', tuned')})",
                    f"{rows['clairvoyant']['speedup_vs_best_fixed']['estimate']:.3f}",
                ]
            )
    labels = ["best fixed gamma (= 1)", SHIPPED, *SHORT.values(), "best published rule, tuned", "clairvoyant bound"]
    body = ([label, *row] for label, row in zip(labels, zip(*cells, strict=True), strict=True))
    return "\n".join(map(line, (head, ["---"] * len(head), *body)))


def line(cells: Sequence[str]) -> str:
    """A line of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"
