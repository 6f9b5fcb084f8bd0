# SPDX-License-Identifier: Apache-2.0
"""The cost table of one machine, its JSON file, and the table as arrays for many sequences at once."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from speckv.cost.entry import (
    MOST_ERROR,
    SCHEMA_VERSION,
    CostEntry,
    CostFit,
    Seconds,
    at_batch,
    built,
    check_loads,
    checked_numbers,
    describe_fit,
    record,
    require_version,
    summarise_checks,
    upgraded,
)
from speckv.errors import CostTableError
from speckv.files import canonical_json, find_shipped, write_atomically
from speckv.types import GAMMA_MAX, IntArray

ASSETS = Path(__file__).parents[1] / "assets" / "costs"
KINDS = ("measured", "fitted")

_LEAST_TABULATED = 512
"""Draft widths that `CompiledCost` tabulates at least; wider passes are extrapolated."""

_FAR_CONTEXT = 1024.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """Pass times of one machine, by compression; a CostTableError names a wrong field.

    Attributes:
        kind: "measured" on this machine, or "fitted" to published figures.
        entries: Compression -> its times, all at one batch.
        controller_s: Seconds of one decision of a learned controller; not part of `step_seconds`.
        loads: Times of the same compressions at other batches.
        fit: Compression -> predicted against measured time of live runs, where that was checked.
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
        """Reads a shipped table by name, or a file by path; a CostTableError names the file and the wrong field."""
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
        """Hash of the times and the machine; neither `fit` nor descriptions nor an upgraded schema change it."""
        content = self.to_dict() | {"schema_version": 1}
        del content["fit"]
        for entry in (*content["entries"].values(), *content["loads"]):
            for name in ("contexts", "kernel", "draft_kernel"):
                del entry[name]
            for name, default in (("batch", 1), ("draft_prompt_s", 0.0)):
                if entry[name] == default:
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
        """Measured range in one line: compressions with dtype, batches, widths and contexts."""
        parts = []
        for name, entry in self.entries.items():
            contexts = entry.contexts or (entry.reference_context,)
            parts.append(
                f"{name} in {entry.dtype}, batch {'/'.join(map(str, self.batches(name)))}, widths 1 to "
                f"{entry.verify_widths[-1]}, contexts {'/'.join(map(str, contexts))}"
            )
        return "; ".join(parts)

    def at_batch(self, batch: int) -> "CostTable":
        """The same machine at a batch of at least 1, linear between measured batches; a CostTableError outside them.

        A step's seconds are those of the whole batch; one decision serves all rows. The result is "not checked", as
        `fit` was measured at batch 1. Replay is exact where all rows draft alike; see `require_single_request`.
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
        """Compression -> `describe_fit` of its times."""
        return {name: describe_fit(self.kind, self.fit.get(name)) for name in self.entries}

    def require_publishable(self) -> None:
        """Refuses measured times that were not checked against live runs or are off by more than `MOST_ERROR`."""
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
        """Refuses compressions that the table does not cover with a CostTableError."""
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

    def plain_s(self, compression: str) -> float:
        """Seconds a token of plain decoding at the reference context."""
        return self.entry(compression).verify_s[0]

    def step_seconds(
        self, compression: str, num_drafted: ArrayLike, draft_lag: ArrayLike, context: ArrayLike
    ) -> Seconds:
        """Seconds of one decode step without the controller's; arguments broadcast.

        Args:
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
        entry, drafted = self.entry(compression), np.asarray(num_drafted)
        first = entry.draft_pass_s(1 + np.asarray(draft_lag), context)
        drafting = np.where(drafted > 0, first + (drafted - 1) * entry.draft_pass_s(1, context), 0.0)
        return drafting + entry.verify_pass_s(1 + drafted, context)


def find_cost_table(name_or_path: str | Path) -> Path:
    """Resolves a shipped table's name or a path; a CostTableError lists the shipped ones if it is neither."""
    otherwise = "Measure one with `speckv calibrate`."
    return find_shipped(name_or_path, ASSETS, ".json", CostTableError, kind="cost table", otherwise=otherwise)


class CompiledCost:
    """Cost tables as arrays, for steps of many sequences at once.

    `comp_index` is clock * number of compressions + compression; with one table, the compression.

    Attributes:
        num_clocks: Number of tables.
        cost_ratio: Shape [clocks * compressions], as the others.
        reference_autoregressive_s: Plain decoding at the reference context, seconds a token.
        reference_draft_s: A draft pass of width 1 at the reference context.
    """

    def __init__(
        self,
        table: CostTable | Sequence[CostTable],
        compressions: Sequence[str],
        *,
        gamma_max: int = GAMMA_MAX,
    ) -> None:
        tables = [table] if isinstance(table, CostTable) else list(table)
        for one in tables:
            one.require(compressions)
        self.name = tables[0].name
        self.compressions = tuple(compressions)
        self.num_clocks = len(tables)
        self.gamma_max = gamma_max
        self.controller_s = tables[0].controller_s
        entries = [one.entries[name] for one in tables for name in self.compressions]
        self.cost_ratio = np.array([one.cost_ratio(name) for one in tables for name in self.compressions])
        self.reference_autoregressive_s = np.array([e.verify_s[0] for e in entries])
        self.reference_draft_s = np.array([e.draft_s[0] for e in entries])
        # Times are linear in the context: seconds = at_zero + slope * context. Column k of `_rest` holds everything of
        # a step with k drafts but its first draft pass; column w of `_first` that pass at width w, nothing at w = 0.
        rest = [_linear(partial(_rest_of_step, e, gamma_max)) for e in entries]
        self._width_limit = max(_LEAST_TABULATED, *(e.draft_widths[-1] + 1 for e in entries))
        widths = np.arange(1, self._width_limit + 1)
        first = [_linear(partial(e.draft_pass_s, widths)) for e in entries]
        self._rest_at_zero, self._rest_slope = (np.stack(part).ravel() for part in zip(*rest, strict=True))
        self._first_at_zero, self._first_slope = (
            np.pad(np.stack(part), ((0, 0), (1, 0))).ravel() for part in zip(*first, strict=True)
        )
        # The last two tabulated widths lie at or beyond every last measured one, where times are linear in the width.
        self._prompt = np.array([e.draft_prompt_s for e in entries])
        self.reads_prompt_late = bool(self._prompt.any())
        self._tail = np.array([float(np.diff(e.draft_pass_s(widths[-2:], 0.0))[0]) for e in entries])

    def step_seconds(self, comp_index: IntArray, num_drafted: IntArray, lag: IntArray, context: IntArray) -> Seconds:
        """Seconds of one decode step for each row; arguments of shape [N], as for `CostTable.step_seconds`."""
        seconds = self.rest_seconds(comp_index, num_drafted, context)
        seconds += self._first(comp_index, (lag + 1) * (num_drafted > 0), context)
        return seconds

    def rest_seconds(self, comp_index: IntArray, num_drafted: IntArray, context: IntArray) -> Seconds:
        """Seconds of a decode step without its first draft pass; they do not depend on the draft's lag."""
        column = comp_index * (self.gamma_max + 1) + num_drafted
        seconds: Seconds = self._rest_slope[column]
        seconds *= context
        seconds += self._rest_at_zero[column]
        return seconds

    def first_pass_seconds(self, comp_index: IntArray, lag: IntArray, context: IntArray) -> Seconds:
        """Seconds of a step's first draft pass, which reads the newest token and those the draft lags behind."""
        return self._first(comp_index, lag + 1, context)

    def prompt_seconds(self, comp_index: IntArray, prompt_len: IntArray) -> Seconds:
        """Seconds that a request's first draft pass needs in addition to read the prompt; 0 where it was read."""
        seconds: Seconds = self._prompt[comp_index] * prompt_len
        return seconds

    def _first(self, comp_index: IntArray, width: IntArray, context: IntArray) -> Seconds:
        beyond = None
        if width.max(initial=0) > self._width_limit:
            beyond = np.maximum(width - self._width_limit, 0)
            width = width - beyond
        column = comp_index * (self._width_limit + 1) + width
        seconds: Seconds = self._first_slope[column]
        seconds *= context
        seconds += self._first_at_zero[column]
        if beyond is not None:
            seconds += self._tail[comp_index] * beyond
        return seconds

    def autoregressive_s(self, comp_index: IntArray, context: IntArray) -> Seconds:
        """Seconds that plain decoding takes for one token, for each row."""
        return self.rest_seconds(comp_index, np.zeros_like(comp_index), context)


def _rest_of_step(entry: CostEntry, gamma_max: int, context: float) -> Seconds:
    drafted = np.arange(gamma_max + 1)
    further = np.maximum(drafted - 1, 0) * entry.draft_pass_s(1, context)
    return np.asarray(further + entry.verify_pass_s(drafted + 1, context), np.float64)


def _linear(time: Callable[[float], Seconds]) -> tuple[Seconds, Seconds]:
    at_zero = time(0.0)
    return at_zero, (time(_FAR_CONTEXT) - at_zero) / _FAR_CONTEXT
