# SPDX-License-Identifier: Apache-2.0
"""CSV and JSON files of the SpecKV paper, each damage one clear error."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speckv.errors import DataError

Float64 = NDArray[np.float64]


def read_table(folder: Path, name: str, columns: Sequence[str]) -> dict[str, list[str]]:
    """Reads some columns of a CSV file.

    Raises:
        DataError: if the file or a column is missing, or the file holds no line.
    """
    path = folder / name
    if not path.is_file():
        raise DataError(
            f"Expected the SpecKV paper's {name} in {folder}, found none. The files are the results/ folder of "
            "github.com/Amorfati123/SpecKV; name yours with paper.folder=FOLDER."
        )
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path}: expected a column {missing[0]!r}, got {reader.fieldnames}. Fetch the file again.")
        rows = list(reader)
    if not rows:
        raise DataError(f"{path}: expected at least one line below the header, got none. Fetch the file again.")
    return {column: [row[column] or "" for row in rows] for column in columns}


def read_json(folder: Path, name: str) -> dict[str, dict[str, object]]:
    """Reads a JSON file of groups.

    Raises:
        DataError: if it is missing or no such JSON.
    """
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"Expected the SpecKV paper's {name} in {folder}, got {error}. Fetch the file again."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(group, dict) for group in content.values()):
        raise DataError(f"{path}: expected groups of figures, got something else. Fetch the file again.")
    return content


def numbers(table: dict[str, list[str]], column: str, name: str) -> Float64:
    """A column as numbers.

    Raises:
        DataError: naming the file, if something else stands in it.
    """
    try:
        values = np.array([float(text) for text in table[column]])
    except ValueError as error:
        raise DataError(f"{name}: expected numbers in column {column!r}, got {error}. Fetch the file again.") from error
    if not np.isfinite(values).all():
        raise DataError(f"{name}: expected finite numbers in column {column!r}. Fetch the file again.")
    return values
