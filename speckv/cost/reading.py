# SPDX-License-Identifier: Apache-2.0
"""From decoded JSON to the fields of a cost table: versions, and the messages for what is not there."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from speckv.errors import CostTableError, nearest

SCHEMA_VERSION = 3
READABLE = (1, 2, 3)
NEW_IN_TABLES: dict[str, Any] = {"loads": [], "fit": {}}
NEW_IN_ENTRIES: dict[str, Any] = {"batch": 1, "contexts": [], "kernel": "", "draft_kernel": ""}
"""What version 1 lacked, at values that say nothing."""
NEWEST_IN_ENTRIES: dict[str, Any] = {"draft_prompt_s": 0.0}
"""What versions 1 and 2 lacked."""

Built = TypeVar("Built")


def upgraded(content: object) -> dict[str, Any]:
    """A table's JSON object in the present version; times of earlier ones stand as they were.

    Raises:
        CostTableError: if the version cannot be read.
    """
    data = record(content, None, "")
    # First, because a file of another version differs in other fields as well.
    version = data.get("schema_version")
    if version not in READABLE or isinstance(version, bool):
        raise CostTableError(_version_message(version))
    if version < SCHEMA_VERSION:
        new = NEWEST_IN_ENTRIES | (NEW_IN_ENTRIES if version == 1 else {})
        entries = record(data.get("entries"), None, "entries")
        entries = {name: new | record(entry, None, f"entries.{name}") for name, entry in entries.items()}
        data = (NEW_IN_TABLES if version == 1 else {}) | data | {"entries": entries, "schema_version": SCHEMA_VERSION}
        if isinstance(data.get("loads"), list):
            data["loads"] = [new | record(entry, None, f"loads[{k}]") for k, entry in enumerate(data["loads"])]
    return data


def require_version(version: object) -> None:
    """Passes if a table in memory is of the present version.

    Raises:
        CostTableError: otherwise.
    """
    if version != SCHEMA_VERSION:
        raise CostTableError(_version_message(version))


def _version_message(version: object) -> str:
    return (
        f"schema_version: expected {' or '.join(map(str, READABLE))}, got {version!r}. "
        "Calibrate again with this version of SpecKV, or install the version that wrote it."
    )


def built(kind: type[Built], content: object, where: str) -> Built:
    """Builds a part of a table from its JSON object.

    Args:
        kind: A dataclass that checks its own fields.
        content: Decoded JSON.
        where: Place in the file, for messages.

    Raises:
        CostTableError: naming the place and the field.
    """
    values = record(content, kind, where)
    try:
        return kind(**values)
    except CostTableError as error:
        raise CostTableError(f"{where}.{error}") from error


def record(content: object, kind: type[Any] | None, where: str) -> dict[str, Any]:
    """Returns a JSON object whose keys are exactly the fields of `kind`, or any keys if it is None.

    Raises:
        CostTableError: naming the place and the field that is missing, unknown or no text.
    """
    at = where or "the file"
    if not isinstance(content, Mapping):
        raise CostTableError(f"{at}: expected a JSON object, got {type(content).__name__}.")
    if kind is None:
        return dict(content)
    known = [f.name for f in fields(kind)]
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise CostTableError(
            f"{at}: expected only the fields {known}, got {unknown[0]!r}. Remove it.{nearest(unknown[0], known)}"
        )
    missing = [name for name in known if name not in content]
    if missing:
        raise CostTableError(f"{at}: expected the field {missing[0]!r}, got none. Add it.")
    texts = [f.name for f in fields(kind) if f.type is str and not isinstance(content.get(f.name, ""), str)]
    if texts:
        raise CostTableError(f"{where}{'.' if where else ''}{texts[0]}: expected text, got {content[texts[0]]!r}.")
    return dict(content)
