# SPDX-License-Identifier: Apache-2.0
"""Tables of docs/results/reliability.md, from `benchmarks/results/reliability.json`."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.readme_table import line

RECORD = Path(__file__).resolve().parent / "results" / "reliability.json"
OUTCOMES = ("right", "refused", "wrong")


def tables() -> Mapping[str, str]:
    """The page's tables by name."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    parts = {"families of models": record["families"], "settings of a call": record["requests"]}
    rows = [["", "tried", "texts", *OUTCOMES], ["---"] * 5]
    for name, found in parts.items():
        total = sum((Counter(count) for ways in found.values() for count in ways.values()), Counter[str]())
        rows.append([name, str(len(found)), str(total.total()), *(str(total[outcome]) for outcome in OUTCOMES)])
    return {
        "reliability": "\n".join(map(line, rows)),
        "families": _by_way(record["families"]),
        "requests": _by_way(record["requests"]),
    }


def _by_way(found: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    ways = list(next(iter(found.values())))
    rows = [["", *ways], ["---"] * (1 + len(ways))]
    rows += [[name, *(_said(counts[way]) for way in ways)] for name, counts in found.items()]
    return "\n".join(map(line, rows))


def _said(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts.get(outcome)) or "–"
