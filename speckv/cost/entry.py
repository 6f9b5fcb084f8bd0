# SPDX-License-Identifier: Apache-2.0
"""The parts of a cost table: pass times of one compression, how well they predict live runs, and their JSON form."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speckv.errors import ConfigError, CostTableError, nearest

Seconds = NDArray[np.float64]
Built = TypeVar("Built")

MOST_ERROR = 0.10
"""Above this relative error of total time a table's numbers are not fit to be published."""

SAME = ("compression", "dtype", "reference_context", "draft_widths", "verify_widths")
"""What entries of one compression at several batches must share."""

SCHEMA_VERSION = 3
READABLE = (1, 2, 3)
NEW_IN_TABLES: dict[str, Any] = {"loads": [], "fit": {}}
NEW_IN_ENTRIES: dict[str, Any] = {"batch": 1, "contexts": [], "kernel": "", "draft_kernel": ""}
"""Fields that version 1 lacked, with neutral values."""
NEWEST_IN_ENTRIES: dict[str, Any] = {"draft_prompt_s": 0.0}
"""Fields that versions 1 and 2 lacked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEntry:
    """Pass times of one compression of the target, and of its draft; a CostTableError names a wrong field.

    Attributes:
        reference_context: Context length, in tokens, at which the times were taken.
        draft_widths, verify_widths: Tokens scored in one pass, ascending, the first 1.
        draft_s, verify_s: Seconds of a pass at each width; a verify pass of width 1 is plain decoding.
        draft_context_slope_s: Seconds that each context token adds to a draft pass, per width or one for all.
        spread: Interquartile range over median of each verify time, or empty.
        batch: Sequences scored together; widths count the tokens of one, seconds are of the whole pass.
        draft_prompt_s: Seconds that a request's first draft adds for each prompt token, if it reads the prompt then.
    """

    compression: str
    dtype: str
    reference_context: int
    draft_widths: Sequence[int]
    draft_s: Sequence[float]
    draft_context_slope_s: Sequence[float] | float
    verify_widths: Sequence[int]
    verify_s: Sequence[float]
    verify_context_slope_s: Sequence[float] | float
    spread: Sequence[float] = ()
    batch: int = 1
    contexts: Sequence[int] = ()
    kernel: str = ""
    draft_kernel: str = ""
    draft_prompt_s: float = 0.0

    def __post_init__(self) -> None:
        """Checks every field and stores sequences as tuples."""
        _require_count(self.reference_context, "reference_context", least=0)
        _require_count(self.batch, "batch", least=1)
        contexts = _as_tuple(self.contexts) or ()
        for context in contexts:
            _require_count(context, "contexts", least=0)
        object.__setattr__(self, "contexts", contexts)
        for model in ("draft", "verify"):
            widths = _checked_widths(getattr(self, f"{model}_widths"), f"{model}_widths")
            seconds = checked_numbers(getattr(self, f"{model}_s"), f"{model}_s", count=len(widths), positive=True)
            name = f"{model}_context_slope_s"
            slope = getattr(self, name)
            slopes = checked_numbers([slope] * len(widths) if _is_number(slope) else slope, name, count=len(widths))
            # Otherwise a short context would cost nothing, or less.
            for width, time, rise in zip(widths, seconds, slopes, strict=True):
                if rise * self.reference_context >= time:
                    raise CostTableError(
                        f"{name}: expected less than {time / self.reference_context:.3g} s a token at width {width}, "
                        f"so that an empty context still takes time, got {rise:.3g}. Measure it again, or write 0."
                    )
            for key, value in ((f"{model}_widths", widths), (f"{model}_s", seconds), (name, slopes)):
                object.__setattr__(self, key, value)
        checked_numbers([self.draft_prompt_s], "draft_prompt_s", count=1)
        count = len(self.verify_widths) if len(self.spread) else 0
        object.__setattr__(self, "spread", checked_numbers(self.spread, "spread", count=count))

    def draft_pass_s(self, width: ArrayLike, context: ArrayLike) -> Seconds:
        """Seconds of one draft pass over `width` tokens, at least 1, after `context` tokens; arguments broadcast.

        Times are interpolated, and beyond the last width extended with its slope, never downwards.
        """
        return self._pass_s(self.draft_widths, self.draft_s, self.draft_context_slope_s, width, context)

    def verify_pass_s(self, width: ArrayLike, context: ArrayLike) -> Seconds:
        """Seconds of one target pass; arguments as for `draft_pass_s`."""
        return self._pass_s(self.verify_widths, self.verify_s, self.verify_context_slope_s, width, context)

    def _pass_s(
        self,
        widths: Sequence[int],
        seconds: Sequence[float],
        slopes: Sequence[float] | float,
        width: ArrayLike,
        context: ArrayLike,
    ) -> Seconds:
        width = np.asarray(width, np.float64)
        if np.any(width < 1):
            raise CostTableError(f"Expected a pass over at least one token, got width {width.min():g}.")
        tail = max(0.0, (seconds[-1] - seconds[-2]) / (widths[-1] - widths[-2]))
        time = np.interp(width, widths, seconds) + tail * np.maximum(width - widths[-1], 0.0)
        slope = np.interp(width, widths, np.asarray(slopes))
        return np.asarray(time + slope * (np.asarray(context, np.float64) - self.reference_context), np.float64)


def _as_tuple(values: object) -> tuple[Any, ...] | None:
    listed = isinstance(values, Sequence | np.ndarray) and not isinstance(values, str)
    return tuple(values) if listed else None  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _require_count(value: object, name: str, *, least: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise CostTableError(f"{name}: expected a whole number of at least {least}, got {value!r}.")


def _checked_widths(values: object, name: str) -> tuple[int, ...]:
    widths = _as_tuple(values) or ()
    whole = all(_is_number(w) and w == int(w) for w in widths)
    if len(widths) < 2 or not whole or widths[0] != 1 or any(b <= a for a, b in itertools.pairwise(widths)):
        raise CostTableError(f"{name}: expected at least two ascending whole numbers, the first 1, got {values!r}.")
    return tuple(int(w) for w in widths)


def checked_numbers(values: object, name: str, *, count: int, positive: bool = False) -> tuple[float, ...]:
    """Returns `values` as floats; a CostTableError unless they are `count` finite numbers of at least (or above) 0."""
    least = "above 0" if positive else "of at least 0"
    numbers = _as_tuple(values)
    if (
        numbers is None
        or len(numbers) != count
        or not all(_is_number(v) and math.isfinite(v) and (v > 0 if positive else v >= 0) for v in numbers)
    ):
        raise CostTableError(f"{name}: expected {count} finite numbers {least}, got {values!r}.")
    return tuple(float(v) for v in numbers)


def check_loads(base: CostEntry, others: Sequence[CostEntry]) -> None:
    """Refuses entries of one compression that differ in more than batch and times, or share a batch."""
    for entry in others:
        for name in SAME:
            if getattr(entry, name) != getattr(base, name):
                raise CostTableError(
                    f"{name}: expected {getattr(base, name)!r} at batch {entry.batch}, as at batch {base.batch}, "
                    f"got {getattr(entry, name)!r}."
                )
    batches = [entry.batch for entry in (base, *others)]
    twice = sorted({b for b in batches if batches.count(b) > 1})
    if twice:
        raise CostTableError(f"batch: expected every batch once, got {base.compression} at batch {twice[0]} again.")


def at_batch(entries: Iterable[CostEntry], batch: int, table: str) -> CostEntry:
    """The entry of one compression at a batch; a CostTableError outside the measured ones.

    Between measured batches times are linear in the batch: exact where a pass costs a + b * batch, and an upper bound
    around the knee between the flat and the linear part.
    """
    known = sorted(entries, key=lambda entry: entry.batch)
    batches = [entry.batch for entry in known]
    if not batches[0] <= batch <= batches[-1]:
        covered = f"batch {batches[0]}" if len(batches) == 1 else f"batches {batches[0]} to {batches[-1]}"
        raise CostTableError(
            f"Expected a batch that cost table {table!r} covers for {known[0].compression}, {covered}, got {batch}. "
            f"Calibrate with it: batches=[1,{max(batch, 2)}]."
        )
    if batch in batches:
        return known[batches.index(batch)]
    low, high = next((a, b) for a, b in itertools.pairwise(known) if a.batch < batch < b.batch)
    share = (batch - low.batch) / (high.batch - low.batch)

    def between(name: str) -> tuple[float, ...]:
        mixed = (1 - share) * np.asarray(getattr(low, name)) + share * np.asarray(getattr(high, name))
        return tuple(mixed.tolist())

    return replace(
        low,
        batch=batch,
        spread=(),
        draft_s=between("draft_s"),
        draft_context_slope_s=between("draft_context_slope_s"),
        verify_s=between("verify_s"),
        verify_context_slope_s=between("verify_context_slope_s"),
    )


def require_single_request(who: str, batch: int) -> None:
    """Refuses a cost table of a batch above 1 for a controller that decides token by token.

    In a batch, drafting goes on until the last row has stopped; a replay of one request would overstate the saving.
    """
    if batch > 1:
        raise ConfigError(
            f"Expected cost.batch 1 for {who}, which decides token by token, got {batch}: a replay does not charge for "
            "the draft passes that the rows of a batch share. Set cost.batch=1, or agent=best_fixed."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CostFit:
    """Predicted against measured time of live runs at one compression, batch 1.

    Attributes:
        runs: Prompts times schedules of gamma.
        error: Predicted over measured, minus 1: above 0 the table is too slow.
        spread: Interquartile range of the runs' own errors.
    """

    prompts: int
    runs: int
    tokens: int
    predicted_s: float
    measured_s: float
    error: float
    spread: float

    def __post_init__(self) -> None:
        """Checks every field and that the error agrees with the two times."""
        for name in ("prompts", "runs", "tokens"):
            _require_count(getattr(self, name), name, least=1)
        for name in ("predicted_s", "measured_s", "spread"):
            value = getattr(self, name)
            least = 0.0 if name == "spread" else math.ulp(0.0)
            if not isinstance(value, int | float) or not math.isfinite(value) or value < least:
                raise CostTableError(f"{name}: expected a finite number of at least {least:g}, got {value!r}.")
        expected = self.predicted_s / self.measured_s - 1
        if not isinstance(self.error, int | float) or not abs(self.error - expected) < 1e-6:
            raise CostTableError(f"error: expected predicted_s / measured_s - 1 = {expected:.6f}, got {self.error!r}.")

    @staticmethod
    def of(*, prompts: int, tokens: int, predicted_s: list[float], measured_s: list[float], spread: float) -> "CostFit":
        """Adds runs up; the error is that of the sums, never a mean of ratios."""
        predicted, measured = math.fsum(predicted_s), math.fsum(measured_s)
        return CostFit(
            prompts=prompts,
            runs=len(measured_s),
            tokens=tokens,
            predicted_s=predicted,
            measured_s=measured,
            error=predicted / measured - 1,
            spread=spread,
        )

    @property
    def good(self) -> bool:
        """Whether the error is at most `MOST_ERROR` either way."""
        return abs(self.error) <= MOST_ERROR


def describe_fit(kind: str, fit: CostFit | None) -> str:
    """How well a compression's times predict live runs, in a few words; `kind` is the table's.

    >>> describe_fit("measured", CostFit.of(prompts=1, tokens=9, predicted_s=[0.86], measured_s=[1.0], spread=0.02))
    'off by 14 %'
    """
    if fit is not None:
        return f"{'within' if fit.good else 'off by'} {100 * abs(fit.error):.0f} %"
    return "fitted" if kind == "fitted" else "not checked"


def describe_clock(kind: str, checks: Mapping[str, str]) -> str:
    """A table's kind and how well its times predict live runs, in a few words.

    >>> describe_clock("measured", {"fp16": "not checked"})
    'measured, not checked against live runs'
    >>> describe_clock("measured", {"fp16": "within 2 %", "nf4": "off by 14 %"})
    'measured, fp16 within 2 %, nf4 off by 14 % of live runs'
    """
    summary = summarise_checks(checks)
    if summary == kind:
        return kind
    return f"{kind}, {summary} {'against' if summary == 'not checked' else 'of'} live runs"


def summarise_checks(checks: Mapping[str, str]) -> str:
    """One phrase for all compressions.

    >>> summarise_checks({"fp16": "within 2 %", "nf4": "off by 14 %"})
    'fp16 within 2 %, nf4 off by 14 %'
    """
    words = set(checks.values())
    return words.pop() if len(words) == 1 else ", ".join(f"{name} {text}" for name, text in checks.items())


def upgraded(content: object) -> dict[str, Any]:
    """A table's JSON object in the present version, times unchanged; a CostTableError for an unknown version."""
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
    """Refuses a table in memory of another version than the present one."""
    if version != SCHEMA_VERSION:
        raise CostTableError(_version_message(version))


def _version_message(version: object) -> str:
    return (
        f"schema_version: expected {' or '.join(map(str, READABLE))}, got {version!r}. "
        "Calibrate again with this version of SpecKV, or install the version that wrote it."
    )


def built(kind: type[Built], content: object, where: str) -> Built:
    """Builds a part of a table, a dataclass that checks its own fields, from decoded JSON at a place in the file."""
    values = record(content, kind, where)
    try:
        return kind(**values)
    except CostTableError as error:
        raise CostTableError(f"{where}.{error}") from error


def record(content: object, kind: type[Any] | None, where: str) -> dict[str, Any]:
    """Returns a JSON object whose keys must be exactly the fields of `kind`; any keys if it is None."""
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
