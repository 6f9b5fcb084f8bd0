# SPDX-License-Identifier: Apache-2.0
"""The cost table of one machine: lookups, and its JSON file."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from speckv.cost.entry import CostEntry, Seconds, checked_numbers
from speckv.cost.fit import MOST_ERROR, CostFit, describe_fit, summarise_checks
from speckv.cost.load import at_batch, check_loads
from speckv.cost.reading import SCHEMA_VERSION, built, record, require_version, upgraded
from speckv.errors import CostTableError
from speckv.files import canonical_json, find_shipped, write_atomically

ASSETS = Path(__file__).parents[1] / "assets" / "costs"
KINDS = ("measured", "fitted")


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """Pass times of one machine, by compression.

    Attributes:
        name: Shown beside every number that rests on it.
        kind: "measured" on this machine, or "fitted" to figures that someone published.
        machine: What it ran on: processor, threads, versions.
        entries: Compression -> its times, all at one batch.
        controller_s: Seconds of one decision of a learned controller; `step_seconds` leaves it out, whoever drives
            the steps adds it for controllers that charge it.
        notes: Anything a reader must know.
        source: Where the figures come from: the command, or a citation.
        loads: Times of the same compressions at other batches, each named by its entry's `batch`.
        fit: Compression -> predicted against measured time of whole live runs, for those that were checked.

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
    loads: Sequence[CostEntry] = ()
    fit: Mapping[str, CostFit] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Checks every field."""
        require_version(self.schema_version)
        if self.kind not in KINDS:
            raise CostTableError(f"kind: expected one of {list(KINDS)}, got {self.kind!r}.")
        checked_numbers([self.controller_s], "controller_s", count=1)
        if not self.entries:
            raise CostTableError("entries: expected at least one compression, got none.")
        for name, entry in self.entries.items():
            if entry.compression != name:
                raise CostTableError(f"entries.{name}.compression: expected {name!r}, got {entry.compression!r}.")
        if len({entry.batch for entry in self.entries.values()}) > 1:
            raise CostTableError("entries: expected one batch for all of them. Put other batches into loads.")
        object.__setattr__(self, "loads", tuple(self.loads))
        self.require([*self.fit, *(entry.compression for entry in self.loads)])
        for name, entry in self.entries.items():
            try:
                check_loads(entry, [e for e in self.loads if e.compression == name])
            except CostTableError as error:
                raise CostTableError(f"loads.{error}") from error

    @staticmethod
    def load(name_or_path: str | Path) -> "CostTable":
        """Reads a shipped table by name, or a file by path.

        Raises:
            CostTableError: if there is none, or naming the file and the field that is wrong.
        """
        path = find_cost_table(name_or_path)
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise CostTableError(f"{path}: expected a JSON cost table, got {error}. Calibrate again.") from error
        try:
            return CostTable.from_dict(content)
        except CostTableError as error:
            raise CostTableError(f"{path}: {error}") from error

    @staticmethod
    def from_dict(content: object) -> "CostTable":
        """Builds a table from decoded JSON; unknown, missing and mistyped fields are refused."""
        data = record(upgraded(content), CostTable, "")
        entries = {
            name: built(CostEntry, entry, f"entries.{name}")
            for name, entry in record(data["entries"], None, "entries").items()
        }
        if not isinstance(data["loads"], Sequence) or isinstance(data["loads"], str):
            raise CostTableError(f"loads: expected a list of entries, got {data['loads']!r}.")
        loads = [built(CostEntry, entry, f"loads[{k}]") for k, entry in enumerate(data["loads"])]
        fit = {name: built(CostFit, one, f"fit.{name}") for name, one in record(data["fit"], None, "fit").items()}
        read = {"machine": record(data["machine"], None, "machine"), "entries": entries, "loads": loads, "fit": fit}
        return CostTable(**{**data, **read})

    def to_dict(self) -> dict[str, Any]:
        """Renders what `from_dict` reads."""
        shallow = {f.name: getattr(self, f.name) for f in fields(self)}
        deep = {
            "machine": dict(self.machine),
            "entries": {name: asdict(entry) for name, entry in self.entries.items()},
            "loads": [asdict(entry) for entry in self.loads],
            "fit": {name: asdict(one) for name, one in self.fit.items()},
        }
        return shallow | deep

    @property
    def sha256(self) -> str:
        """Hash of the times and of what they were measured on; checking a table or describing it changes nothing.

        A table of an earlier schema version keeps the hash that it had.
        """
        content = self.to_dict() | {"schema_version": 1}
        del content["fit"]
        for entry in (*content["entries"].values(), *content["loads"]):
            for name in ("contexts", "kernel", "draft_kernel"):
                del entry[name]
            for name, silent in (("batch", 1), ("draft_prompt_s", 0.0)):
                if entry[name] == silent:
                    del entry[name]
        if not content["loads"]:
            del content["loads"]
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Writes the table as JSON, whole or not at all."""
        write_atomically(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    @property
    def compressions(self) -> tuple[str, ...]:
        """Compressions that the table covers."""
        return tuple(self.entries)

    @property
    def batch(self) -> int:
        """Sequences that decode together in `entries`."""
        return next(iter(self.entries.values())).batch

    def batches(self, compression: str) -> tuple[int, ...]:
        """Batches that were measured for a compression, ascending."""
        more = (entry.batch for entry in self.loads if entry.compression == compression)
        return tuple(sorted((self.entry(compression).batch, *more)))

    @property
    def covers(self) -> str:
        """What the times rest on, one line: compressions with dtype, batches, widths and contexts."""
        parts = []
        for name, entry in self.entries.items():
            contexts = entry.contexts or (entry.reference_context,)
            parts.append(
                f"{name} in {entry.dtype}, batch {'/'.join(map(str, self.batches(name)))}, widths 1 to "
                f"{entry.verify_widths[-1]}, contexts {'/'.join(map(str, contexts))}"
            )
        return "; ".join(parts)

    def at_batch(self, batch: int) -> "CostTable":
        """The same machine under load: a table whose entries are the times at a batch.

        All that reads a table works on it unchanged: a step's seconds are then those of one request in a batch, which
        takes as long as the whole batch, and `cost_ratio` reflects the load. A decision takes the same time: one call
        decides for all rows of a batch. How well the times add up was checked at batch 1 alone, so the result is "not
        checked". Replay on it is exact where all rows draft alike; see `require_single_request`.

        Args:
            batch: Sequences that decode together, at least 1; between measured batches times are linear in it.

        Raises:
            CostTableError: if some compression was not measured at batches on both sides of it.
        """
        if batch == self.batch:
            return self
        entries = {
            name: at_batch((entry, *(e for e in self.loads if e.compression == name)), batch, self.name)
            for name, entry in self.entries.items()
        }
        return replace(self, name=f"{self.name}@batch{batch}", entries=entries, loads=(), fit={})

    @property
    def checks(self) -> dict[str, str]:
        """Compression -> in a few words how well its times add up to live runs; see `describe_fit`."""
        return {name: describe_fit(self.kind, self.fit.get(name)) for name in self.entries}

    def require_publishable(self) -> None:
        """Passes if the times of every compression were checked against live runs and found good, or are fitted ones.

        Raises:
            CostTableError: naming each compression that was not checked, or is off by more than `MOST_ERROR`.
        """
        bad = {
            name: text
            for name, text in self.checks.items()
            if not (self.fit[name].good if name in self.fit else self.kind == "fitted")
        }
        if bad:
            raise CostTableError(
                f"Expected cost table {self.name!r} to predict the time of live runs within {MOST_ERROR:.0%}, got "
                f"{summarise_checks(bad)} for {sorted(bad)}. Calibrate again with check=true, alone on the machine."
            )

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

    def plain_s(self, compression: str) -> float:
        """Seconds a token of plain decoding at the reference context: the unit of a live reward."""
        return float(self.autoregressive_s(compression, self.entry(compression).reference_context))

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
