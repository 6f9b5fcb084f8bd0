# SPDX-License-Identifier: Apache-2.0
"""Unfinished calibrations: what has been measured is kept beside the table, and the same command goes on from there."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from speckv.cost import CostTable
from speckv.errors import ConfigError, CostTableError
from speckv.files import write_atomically
from speckv.profiling.machine import describe_machine

if TYPE_CHECKING:
    from speckv.profiling.calibrate import CalibrationPlan


class PartialTable:
    """The file of an unfinished calibration, `NAME.partial.json` beside `NAME.json`."""

    def __init__(self, out: Path, plan: "CalibrationPlan") -> None:
        self.path = out.with_suffix(".partial.json")
        facts = {"plan": asdict(plan), "machine": describe_machine()}
        self._facts = json.loads(json.dumps(facts, default=str))

    def load(self) -> CostTable | None:
        """The table so far, or None if nothing was kept.

        Raises:
            ConfigError: if it was begun with other settings, or on another machine.
        """
        if not self.path.is_file():
            return None
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            facts, table = content["facts"], CostTable.from_dict(content["table"])
        except (OSError, ValueError, KeyError, TypeError, CostTableError) as error:
            raise ConfigError(f"Expected a kept calibration in {self.path}, got: {error}. Delete it.") from error
        for part in ("machine", "plan"):
            for key, value in self._facts[part].items():
                if facts[part].get(key) != value:
                    raise ConfigError(
                        f"Expected {self.path} to hold a calibration with {key}={value}, got {facts[part].get(key)}. "
                        "Delete it to begin anew, or name another out."
                    )
        return table

    def save(self, table: CostTable) -> None:
        """Keeps a table."""
        write_atomically(self.path, json.dumps({"facts": self._facts, "table": table.to_dict()}, indent=2) + "\n")

    def delete(self) -> None:
        """Deletes the file once the table is written."""
        self.path.unlink(missing_ok=True)
