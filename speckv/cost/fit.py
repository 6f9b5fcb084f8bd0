# SPDX-License-Identifier: Apache-2.0
"""How well a table's times add up to the wall clock of whole decoding runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from speckv.errors import CostTableError

MOST_ERROR = 0.10
"""Above this relative error of total time a table's numbers are not fit to be published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostFit:
    """Predicted against measured time of live runs at one compression, batch 1.

    Attributes:
        prompts: Distinct prompts decoded.
        runs: Runs: prompts times schedules of gamma.
        tokens: Tokens that decode steps emitted, all runs together.
        predicted_s: What the table gives for the very steps that were taken, all runs together.
        measured_s: What they took.
        error: Predicted over measured, minus 1: above 0 the table is too slow.
        spread: Interquartile range of the runs' own errors.

    Raises:
        CostTableError: naming the field that cannot be right.
    """

    prompts: int
    runs: int
    tokens: int
    predicted_s: float
    measured_s: float
    error: float
    spread: float

    def __post_init__(self) -> None:
        """Checks every field, and that the error is that of the two times."""
        for name in ("prompts", "runs", "tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CostTableError(f"{name}: expected a whole number of at least 1, got {value!r}.")
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
    """In a few words what is known of a compression's times; printed beside the table's name.

    Args:
        kind: Of the table: "measured" or "fitted".
        fit: Of the compression, if it was checked.

    >>> describe_fit("measured", None)
    'not checked'
    >>> fit = CostFit.of(prompts=1, tokens=9, predicted_s=[0.5, 0.36], measured_s=[0.6, 0.4], spread=0.02)
    >>> describe_fit("measured", fit)
    'off by 14 %'
    >>> describe_fit("fitted", None)
    'fitted'
    """
    if fit is not None:
        return f"{'within' if fit.good else 'off by'} {100 * abs(fit.error):.0f} %"
    return "fitted" if kind == "fitted" else "not checked"


def describe_clock(kind: str, checks: Mapping[str, str]) -> str:
    """What a reader must know of a table beside its name: its kind, and how well its times add up.

    >>> describe_clock("measured", {"fp16": "not checked"})
    'measured, not checked against live runs'
    >>> describe_clock("measured", {"fp16": "within 2 %", "nf4": "off by 14 %"})
    'measured, fp16 within 2 %, nf4 off by 14 % of live runs'
    >>> describe_clock("fitted", {"fp16": "fitted"})
    'fitted'
    """
    summary = summarise_checks(checks)
    if summary == kind:
        return kind
    return f"{kind}, {summary} {'against' if summary == 'not checked' else 'of'} live runs"


def summarise_checks(checks: Mapping[str, str]) -> str:
    """One phrase for all compressions.

    >>> summarise_checks({"fp16": "not checked", "nf4": "not checked"})
    'not checked'
    >>> summarise_checks({"fp16": "within 2 %", "nf4": "off by 14 %"})
    'fp16 within 2 %, nf4 off by 14 %'
    """
    words = set(checks.values())
    return words.pop() if len(words) == 1 else ", ".join(f"{name} {text}" for name, text in checks.items())
