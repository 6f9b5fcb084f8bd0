# SPDX-License-Identifier: Apache-2.0
"""README's table on the SpecKV paper, from `benchmarks/results/speckv-paper.json`; `make paper` writes that."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.readme_table import line, show_interval

RESULT = Path(__file__).resolve().parents[1] / "results" / "speckv-paper.json"
ROWS = (
    ("Fixed-4", "Fixed-4", "Fixed-4"),
    ("Fixed-best, by tokens a step", "Fixed-best, which is gamma 8", "Fixed-best"),
    ("Task-oracle", "Task-oracle", "Task-oracle"),
    ("SpecKV-fast, as published", "SpecKV-fast, as published", "SpecKV-fast"),
    ("SpecKV-fast, causal, other prompts", "SpecKV-fast, causal, on unseen prompts", None),
    ("Fixed-best, by tokens a second", "best fixed gamma by tokens/s", None),
)
"""Policy in the result, what README calls it, and the paper's own name of it if it published it."""
HEADER = (
    "",
    "tokens a step, published",
    "recomputed",
    "realised",
    "tokens/s: fp16, INT8, NF4",
    "x best fixed gamma [95 %]",
)
NONE = "–"


def render() -> str:
    """The table in Markdown."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    by_name = {row["policy"]: row for row in (*result["policies"], *result["conditions"])}
    published, recomputed = (result[key]["tokens_per_step"]["Overall"] for key in ("published", "recomputed"))
    lines = [HEADER, ["---"] * len(HEADER)]
    for name, label, theirs in ROWS:
        claims = [f"{of[theirs]:.2f}" if theirs else NONE for of in (published, recomputed)]
        chosen = ": " + ", ".join(map(str, result["best_fixed_by_time"].values())) if label.startswith("best") else ""
        lines.append([label + chosen, *claims, *measured(by_name[name])])
    return "\n".join(map(line, lines))


def measured(row: Mapping[str, Any]) -> list[str]:
    """Realised tokens per step, tokens per second, and speed-up over the best fixed gamma."""
    rates = ", ".join(f"{rate:.1f}" for rate in row["tokens_per_s"].values())
    return [f"{row['realised_tokens_per_step']:.2f}", rates, show_interval(row["vs_best_fixed_by_time"])]
