# SPDX-License-Identifier: Apache-2.0
"""Tables of docs/results/ablations.md, from the committed records of the studies in `configs/experiment`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.readme_table import line
from speckv.agents.runs.study_results import cells

FOLDER = Path(__file__).resolve().parent / "results" / "studies"


def records() -> dict[str, Mapping[str, Any]]:
    """Name of each study -> its record."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json")))
    return {record["study"]: record for record in found}


def table(record: Mapping[str, Any]) -> str:
    """A study's table in Markdown, and what it was measured on."""
    header, rows = cells(record)
    seeds, cost = record["seeds"], record["cost"]
    lines = [line(header), line(["---"] * len(header)), *map(line, rows)]
    return "\n".join(lines) + (
        f"\n\n`{command(record)}`: {record['test_prompts']} test prompts, {len(seeds)} seeds, cost table "
        f"`{cost['name']}` ({cost['clock']}), traces `{record['traces']['name']}`.\n\n"
        f"![{record['question']}](../../benchmarks/results/studies/{record['study']}.png)"
    )


def tables() -> dict[str, str]:
    """Name -> table in Markdown."""
    return {name: table(record) for name, record in records().items()}


def command(record: Mapping[str, Any]) -> str:
    """The command of a study, as it is typed today."""
    return str(record["command"]).replace("python train.py", "speckv train")
