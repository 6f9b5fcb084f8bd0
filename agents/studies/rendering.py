# SPDX-License-Identifier: Apache-2.0
"""A study's record as a table: the one on the screen and the one in the docs."""

from collections.abc import Mapping, Sequence
from typing import Any

from speckv.evaluation.bootstrap import Interval
from speckv.evaluation.text import format_interval, render_table

HEADER = ("arm", "x best fixed gamma", "x first arm", "against the first arm")


def cells(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a study's table.

    Args:
        record: As `study.json` holds it.
    """
    compressions = list(record["outcomes"][0]["by_compression"])
    header = [*HEADER, *(compressions if len(compressions) > 1 else [])]
    rows = []
    for outcome in record["outcomes"]:
        over = outcome["over_reference"]
        row = [outcome["name"], show(outcome["over_best_fixed"]), show(over) if over else "", outcome["claim"] or ""]
        if len(compressions) > 1:
            row += [show(outcome["by_compression"][name]) for name in compressions]
        rows.append(row)
    return header, rows


def show(interval: Mapping[str, Any]) -> str:
    """An interval in words."""
    return format_interval(Interval(**interval))


def render(record: Mapping[str, Any]) -> str:
    """The whole outcome as text."""
    header, rows = cells(record)
    cost, traces = record["cost"], record["traces"]["name"]
    return (
        f"{record['question']}\n\n{render_table(header, rows)}\n\n"
        f"{record['test_prompts']} test prompts; clock {cost['name']} ({cost['clock']}), traces {traces}; "
        f"{_seeds(record['seeds'])}.\n"
        "Brackets: 95 % bootstrap intervals over prompts and seeds. Over best fixed: geometric mean of compressions.\n"
        "Against the first arm: sign-flip tests at 5 %, Holm's control over the study's arms.\n"
    )


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"one seed, {seeds[0]}: how much a seed moves this is not in the intervals"
    return f"{len(seeds)} seeds, {', '.join(map(str, seeds))}"
