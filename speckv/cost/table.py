# SPDX-License-Identifier: Apache-2.0
"""The cost table of one machine: lookups, and its JSON file."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from speckv.cost.entry import CostEntry, Seconds, checked_numbers
from speckv.errors import CostTableError, nearest
from speckv.files import find_shipped, write_atomically

SCHEMA_VERSION = 1
ASSETS = Path(__file__).parents[1] / "assets" / "costs"
KINDS = ("measured", "fitted")


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """Pass times of one machine, by compression.

    Attributes:
        name: Shown beside every number that rests on it.
        kind: "measured" on this machine, or "fitted" to figures that someone published.
        machine: What it ran on: processor, threads, versions.
        entries: Compression -> its times.
        controller_s: Seconds of one decision of a learned controller; `step_seconds` leaves it out, whoever drives
            the steps adds it for controllers that charge it.
        notes: Anything a reader must know.
        source: Where the figures come from: the command, or a citation.

    Raises:
        CostTableError: naming the field that cannot be right.
    """

    name: str
    kind: str
    machine: Mapping[str, str | int | float]
    entries: Mapping[str, CostEntry]
    controller_s: float = 0.0
    notes: str = ""
    source: str = ""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Checks every field."""
        _require_version(self.schema_version)
        if self.kind not in KINDS:
            raise CostTableError(f"kind: expected one of {list(KINDS)}, got {self.kind!r}.")
        checked_numbers([self.controller_s], "controller_s", count=1)
        if not self.entries:
            raise CostTableError("entries: expected at least one compression, got none.")
        for name, entry in self.entries.items():
            if entry.compression != name:
                raise CostTableError(f"entries.{name}.compression: expected {name!r}, got {entry.compression!r}.")

    @staticmethod
    def load(name_or_path: str | Path) -> "CostTable":
        """Reads a shipped table by name, or a file by path.

        Raises:
            CostTableError: if there is none, or naming the file and the field that is wrong.
        """
        path = find_cost_table(name_or_path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CostTableError(f"{path}: expected a JSON cost table, got {error}. Calibrate again.") from error
        try:
            return CostTable.from_dict(content)
        except CostTableError as error:
            raise CostTableError(f"{path}: {error}") from error

    @staticmethod
    def from_dict(content: object) -> "CostTable":
        """Builds a table from decoded JSON; unknown, missing and mistyped fields are refused."""
        # First, because a file of another version differs in other fields as well.
        _require_version(_record(content, None, "").get("schema_version"))
        data = _record(content, CostTable, "")
        entries = _record(data["entries"], None, "entries")
        built = {}
        for name, entry in entries.items():
            where = f"entries.{name}"
            record = _record(entry, CostEntry, where)
            try:
                built[name] = CostEntry(**record)
            except CostTableError as error:
                raise CostTableError(f"{where}.{error}") from error
        return CostTable(**{**data, "machine": _record(data["machine"], None, "machine"), "entries": built})

    def to_dict(self) -> dict[str, Any]:
        """Renders what `from_dict` reads."""
        shallow = {f.name: getattr(self, f.name) for f in fields(self)}
        entries = {name: asdict(entry) for name, entry in self.entries.items()}
        return {**shallow, "machine": dict(self.machine), "entries": entries}

    def save(self, path: str | Path) -> None:
        """Writes the table as JSON, whole or not at all."""
        write_atomically(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    @property
    def compressions(self) -> tuple[str, ...]:
        """Compressions that the table covers."""
        return tuple(self.entries)

    def require(self, compressions: Iterable[str]) -> None:
        """Passes if all of these compressions are covered.

        Raises:
            CostTableError: naming the missing ones.
        """
        missing = sorted(set(compressions) - set(self.entries))
        if missing:
            raise CostTableError(
                f"Expected cost table {self.name!r} to cover {missing}, got only {sorted(self.entries)}. "
                "Calibrate those compressions, or choose among the covered ones."
            )

    def entry(self, compression: str) -> CostEntry:
        """Returns one compression's times."""
        self.require([compression])
        return self.entries[compression]

    def cost_ratio(self, compression: str) -> float:
        """One draft pass over one verify pass, both of width 1 at the reference context."""
        entry = self.entry(compression)
        return entry.draft_s[0] / entry.verify_s[0]

    def draft_pass_s(self, compression: str, width: ArrayLike, context: ArrayLike) -> Seconds:
        """Seconds of one draft pass; arguments broadcast.

        Args:
            compression: Of the target that the draft serves.
            width: Tokens scored in the pass, at least 1: interpolated between measured widths, and beyond the last one
                extended with the slope of the last two, never downwards.
            context: Tokens before the pass.
        """
        return self.entry(compression).draft_pass_s(width, context)

    def verify_pass_s(self, compression: str, width: ArrayLike, context: ArrayLike) -> Seconds:
        """Seconds of one target pass; arguments as for `draft_pass_s`."""
        return self.entry(compression).verify_pass_s(width, context)

    def autoregressive_s(self, compression: str, context: ArrayLike) -> Seconds:
        """Seconds that plain decoding takes for the token after `context` tokens."""
        return self.verify_pass_s(compression, 1, context)

    def draft_seconds(
        self, compression: str, num_drafted: ArrayLike, draft_lag: ArrayLike, context: ArrayLike
    ) -> Seconds:
        """Seconds that one decode step spends drafting; zero where it drafts nothing."""
        entry, drafted = self.entry(compression), np.asarray(num_drafted)
        first = entry.draft_pass_s(1 + np.asarray(draft_lag), context)
        return np.where(drafted > 0, first + (drafted - 1) * entry.draft_pass_s(1, context), 0.0)

    def step_seconds(
        self, compression: str, num_drafted: ArrayLike, draft_lag: ArrayLike, context: ArrayLike
    ) -> Seconds:
        """Seconds of one decode step without the controller's; arguments broadcast.

        Args:
            compression: Of the target.
            num_drafted: Tokens really drafted, 0 or more.
            draft_lag: Emitted tokens missing from the draft's cache, the newest one not counted.
            context: Prompt tokens plus tokens emitted before the step.

        >>> entry = CostEntry(
        ...     compression="fp16", dtype="float16", reference_context=0,
        ...     draft_widths=[1, 2], draft_s=[1.0, 1.5], draft_context_slope_s=0.0,
        ...     verify_widths=[1, 5], verify_s=[10.0, 12.0], verify_context_slope_s=0.0,
        ... )
        >>> table = CostTable(name="toy", kind="fitted", machine={}, entries={"fp16": entry})
        >>> table.step_seconds("fp16", num_drafted=[0, 2, 2], draft_lag=[0, 0, 1], context=8).tolist()
        [10.0, 13.0, 13.5]
        """
        drafting = self.draft_seconds(compression, num_drafted, draft_lag, context)
        return drafting + self.verify_pass_s(compression, 1 + np.asarray(num_drafted), context)


def find_cost_table(name_or_path: str | Path) -> Path:
    """Resolves a shipped table's name or a path.

    Raises:
        CostTableError: listing the shipped tables if it is neither.
    """
    otherwise = "Measure one with `python -m speckv calibrate`."
    return find_shipped(name_or_path, ASSETS, ".json", CostTableError, kind="cost table", otherwise=otherwise)


def _require_version(version: object) -> None:
    if version != SCHEMA_VERSION:
        raise CostTableError(
            f"schema_version: expected {SCHEMA_VERSION}, got {version!r}. "
            "Calibrate again with this version of SpecKV, or install the version that wrote it."
        )


def _record(content: object, kind: type[CostTable] | type[CostEntry] | None, where: str) -> dict[str, Any]:
    """Returns a JSON object whose keys are exactly the fields of `kind`, or any keys if it is None."""
    at = where or "the file"
    if not isinstance(content, Mapping):
        raise CostTableError(f"{at}: expected a JSON object, got {type(content).__name__}.")
    if kind is not None:
        known = [f.name for f in fields(kind)]
        unknown = sorted(set(content) - set(known))
        if unknown:
            raise CostTableError(
                f"{at}: expected only the fields {known}, got {unknown[0]!r}. Remove it.{nearest(unknown[0], known)}"
            )
        missing = [name for name in known if name not in content]
        if missing:
            raise CostTableError(f"{at}: expected the field {missing[0]!r}, got none. Add it.")
        texts = [f.name for f in fields(kind) if f.type is str and not isinstance(content[f.name], str)]
        if texts:
            raise CostTableError(f"{where}{'.' if where else ''}{texts[0]}: expected text, got {content[texts[0]]!r}.")
    return dict(content)
