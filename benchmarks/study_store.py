# SPDX-License-Identifier: Apache-2.0
"""Records of a study in one JSON file, written as they come."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speckv.agents.runs.run_folder import provenance
from speckv.errors import ConfigError
from speckv.files import write_atomically

Record = dict[str, Any]


class Store:
    """Opens or begins a file.

    Args:
        path: Of the file.
        benchmark: What the records are of.
        setting: Must be the same for all records.

    Attributes:
        records: Key -> record.

    Raises:
        ConfigError: if the file is there with another setting.
    """

    def __init__(self, path: Path, *, benchmark: str, setting: Mapping[str, object]) -> None:
        self._path = path
        self._head = {"benchmark": benchmark, "setting": dict(setting)}
        self.records: dict[str, Record] = {}
        if not path.exists():
            return
        content = json.loads(path.read_text(encoding="utf-8"))
        head = {key: content.get(key) for key in self._head}
        if head != self._head:
            raise ConfigError(f"Expected {path} to hold records of {self._head}, got {head}. Name another file.")
        self.records = content["runs"]

    def add(self, key: str, record: Record) -> None:
        """Writes one more record, with where it was made."""
        self.records[key] = {**record, "made": provenance()}
        content = {**self._head, "runs": dict(sorted(self.records.items()))}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, json.dumps(content, indent=1) + "\n")
