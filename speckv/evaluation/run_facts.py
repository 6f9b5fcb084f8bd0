# SPDX-License-Identifier: Apache-2.0
"""What a run folder says of itself, and where the folder of a controller is."""

import json
from collections.abc import Mapping
from pathlib import Path

from speckv.cost import CostTable
from speckv.errors import CheckpointError, ConfigError
from speckv.runtime.policy import SHIPPED

RUN, CONFIG = "run.json", "config.yaml"
"""Files of a run folder: what decided the run beside its settings, and those."""
SHIPPED_WORD = "shipped"


def controller_folder(word: str, cost: str | None) -> Path:
    """Finds the folder of a controller.

    Args:
        word: A run folder, a policy's folder, or "shipped" for the policy that comes with a cost table.
        cost: Name or path of that cost table, or None if nobody named one.

    Raises:
        ConfigError: if nobody named the table of a shipped policy.
        CheckpointError: if there is no such folder.
    """
    if word == SHIPPED_WORD and cost is None:
        raise ConfigError(
            f"Expected a cost table beside `{SHIPPED_WORD}`, because there is a policy for each, got none. "
            "Name it: cost=NAME data=NAME, or --cost NAME for an export."
        )
    folder = SHIPPED / CostTable.load(cost).name if word == SHIPPED_WORD and cost is not None else Path(word)
    if not folder.is_dir():
        raise CheckpointError(f"Expected a run folder or a policy's folder at {folder}, found none.")
    return folder


def read_facts(folder: Path) -> Mapping[str, object]:
    """Reads what decided a run; nothing of a policy's folder, which does not say.

    Raises:
        CheckpointError: if the file is damaged.
    """
    path = folder / RUN
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: expected a readable {RUN}, got: {error}. The folder is damaged.") from error
    if not isinstance(facts, dict):
        raise CheckpointError(f"{folder}: expected an object in {RUN}, got {facts!r}. The folder is damaged.")
    return facts


def said(facts: Mapping[str, object], what: str, key: str) -> str:
    """One word of the facts about a file that a run was trained on, or "" if they hold none.

    >>> said({"cost": {"name": "cpu-2core"}}, "cost", "name"), said({}, "traces", "sha256")
    ('cpu-2core', '')
    """
    about = facts.get(what)
    value = about.get(key) if isinstance(about, dict) else None
    return str(value) if value else ""
