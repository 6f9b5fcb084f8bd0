# SPDX-License-Identifier: Apache-2.0
"""The table of live decoding at each compression, from `benchmarks/results/live-bf16-*.json`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.readme_table import line

PLAIN, BEST = "autoregressive", "best fixed"

RESULTS = Path(__file__).resolve().parent / "results"
COMPRESSIONS = ("fp16", "int8", "nf4")
ARMS = {
    PLAIN: "plain decoding",
    BEST: "best fixed gamma",
    "survival-stopping": "supervised, token by token, fitted to this machine's cost table",
    "self-timed": "shipped, nothing calibrated",
}
NONE = "–"


def load(compression: str) -> dict[str, Any]:
    """Reads one committed comparison."""
    content: dict[str, Any] = json.loads((RESULTS / f"live-bf16-{compression}.json").read_text(encoding="utf-8"))
    return content


def cell(report: Mapping[str, Any], arm: str) -> str:
    """Tokens a second, and how many times as fast as plain decoding."""
    if arm not in report["arms"]:
        return NONE
    rate = f"{report['arms'][arm]['tokens_per_s']:.2f}"
    if arm == PLAIN:
        return rate
    constant = f" with {report['best_fixed_gamma']}" if arm == BEST else ""
    return f"{rate}{constant}: {ratio(report['speedup_over_plain'][arm])}"


def over_best(report: Mapping[str, Any], arm: str) -> str:
    """How many times as fast as the best fixed gamma."""
    return ratio(report["speedup_over_best_fixed"][arm]) if arm in report["arms"] else NONE


def ratio(value: Mapping[str, float]) -> str:
    """A ratio with its bounds, to the places that a dozen prompts can bear."""
    return f"{value['estimate']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def render() -> str:
    """The table in Markdown: a row an arm, a column a compression."""
    reports = [load(compression) for compression in COMPRESSIONS]
    lines = [
        ["tokens/s: x plain decoding [95 %]", *COMPRESSIONS],
        ["---"] * (1 + len(COMPRESSIONS)),
        *([label, *(cell(report, arm) for report in reports)] for arm, label in ARMS.items()),
        *(
            [f"{ARMS[arm]}, over the best fixed gamma", *(over_best(report, arm) for report in reports)]
            for arm in ARMS
            if arm not in (PLAIN, BEST)
        ),
        ["prompts on which all arms wrote one text", *(f"{alike(r)} of {len(r['prompts'])}" for r in reports)],
    ]
    return "\n".join(line(cells) for cells in lines)


def sentence() -> str:
    """The supervised controller by the wall clock, in a sentence."""
    reports = [load(compression) for compression in COMPRESSIONS]
    arm = "self-timed"
    plain = ", ".join(ratio(report["speedup_over_plain"][arm]) for report in reports)
    best = ", ".join(ratio(report["speedup_over_best_fixed"][arm]) for report in reports)
    numbers = [len(report["prompts"]) for report in reports]
    prompts = f"{min(numbers)} to {max(numbers)}" if len(set(numbers)) > 1 else str(numbers[0])
    return (
        f"By the wall clock, on two CPU cores, {prompts} test prompts, nothing calibrated beforehand: the shipped "
        f"policy decodes {plain} times as fast as plain decoding at {', '.join(COMPRESSIONS)}, and {best} times as "
        "fast as the best fixed gamma, which was tuned on this machine's times."
    )


def alike(report: Mapping[str, Any]) -> int:
    """Prompts whose text is one whatever the arm; a near-tie can turn out otherwise at another width of pass."""
    by_prompt = zip(*report["first_difference"].values(), strict=True)
    return sum(all(where is None for where in places) for places in by_prompt)
