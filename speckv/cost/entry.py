# SPDX-License-Identifier: Apache-2.0
"""Pass times of one compression, and the checks that every number in a cost table must pass."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speckv.errors import CostTableError

Seconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEntry:
    """Pass times of one compression of the target, and of the draft that serves it.

    Attributes:
        compression: "fp16", "int8" or "nf4".
        dtype: What the target's arithmetic ran in.
        reference_context: Context length, in tokens, at which the times were taken.
        draft_widths: Tokens scored in one draft pass, ascending, the first 1.
        draft_s: Seconds of a draft pass at each width.
        draft_context_slope_s: Seconds that each context token adds to a draft pass, per width; one number stands for
            all widths.
        verify_widths: Tokens scored in one verify pass, ascending, the first 1 (plain decoding).
        verify_s: Seconds of a verify pass at each width.
        verify_context_slope_s: As for the draft.
        spread: Interquartile range over median of each verify time, or empty.
        batch: Sequences that one pass scores together; widths and seconds are those of the whole pass, `batch` times
            `width` tokens.
        contexts: Context lengths, in tokens, that the times and slopes rest on; empty where nobody said.
        kernel: What multiplies the target's weights, in words, a slow path named as such; empty where nobody said.
        draft_kernel: The same of the draft.
        draft_prompt_s: Seconds for each token of the prompt that a request's first draft takes besides, where the
            draft model reads the prompt only when it is first asked; 0 where it has read it before decoding begins.

    Raises:
        CostTableError: naming the field that cannot be right.
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
        """Seconds of one draft pass over `width` tokens after `context` tokens."""
        return self._pass_s(self.draft_widths, self.draft_s, self.draft_context_slope_s, width, context)

    def verify_pass_s(self, width: ArrayLike, context: ArrayLike) -> Seconds:
        """Seconds of one target pass over `width` tokens after `context` tokens."""
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
    """Returns `values` as floats if they are `count` finite numbers, none below zero (or all above it).

    Raises:
        CostTableError: naming the field otherwise.
    """
    least = "above 0" if positive else "of at least 0"
    numbers = _as_tuple(values)
    if (
        numbers is None
        or len(numbers) != count
        or not all(_is_number(v) and math.isfinite(v) and (v > 0 if positive else v >= 0) for v in numbers)
    ):
        raise CostTableError(f"{name}: expected {count} finite numbers {least}, got {values!r}.")
    return tuple(float(v) for v in numbers)
