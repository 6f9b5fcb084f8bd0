# SPDX-License-Identifier: Apache-2.0
"""Timings of passes and of whole runs as entries of a cost table, for any decoding library. Needs NumPy only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from speckv.cost import CostEntry, CostFit
from speckv.errors import ConfigError
from speckv.types import GAMMA_MAX, FloatArray, IntArray, StepOutcome

WIDTHS = tuple(range(1, GAMMA_MAX + 2))
"""From plain decoding's width to that of the longest draft."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingPlan:
    """How passes are timed.

    Attributes:
        reference_context: Context length at which every width is timed, in tokens.
        far_context: Context length that gives the slope, timed at the anchors; attention is linear in the context.
        widths: Tokens scored of each sequence in a pass, ascending, the first 1; others are interpolated.
        repeats: Rounds; a round times every width once.
        warmups: Rounds before them that are dropped: first calls allocate and choose kernels.
    """

    reference_context: int = 256
    far_context: int = 1024
    widths: tuple[int, ...] = WIDTHS
    repeats: int = 7
    warmups: int = 2

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 1 <= self.reference_context < self.far_context:
            raise ConfigError(
                f"Expected 1 <= reference_context < far_context, got {self.reference_context} and {self.far_context}."
            )
        widths = self.widths
        if len(widths) < 2 or widths[0] != 1 or list(widths) != sorted(set(widths)):
            raise ConfigError(f"Expected at least two ascending widths, the first 1, got {list(widths)}.")
        if self.repeats < 1 or self.warmups < 1:
            raise ConfigError(f"Expected repeats and warmups of at least 1, got {self.repeats} and {self.warmups}.")

    @property
    def anchors(self) -> tuple[int, ...]:
        """Widths whose slope over the context is measured; the other slopes are interpolated."""
        return tuple(sorted({self.widths[0], self.widths[len(self.widths) // 4], self.widths[-1]}))


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTimes:
    """Times of one model at one batch, by width.

    Attributes:
        seconds: Median at the reference context.
        slope_s: Seconds that a context token adds, at least 0.
        spread: Interquartile range over median.
    """

    widths: tuple[int, ...]
    seconds: tuple[float, ...]
    slope_s: tuple[float, ...]
    spread: tuple[float, ...]


def summarise(near: Mapping[int, Sequence[float]], far: Mapping[int, Sequence[float]], plan: TimingPlan) -> PassTimes:
    """Medians, slopes and spreads of timings by width, at the reference context and, of the anchors, at the far one."""
    medians = tuple(float(np.median(near[width])) for width in plan.widths)
    distance = plan.far_context - plan.reference_context
    rises = [
        max(0.0, (float(np.median(far[width])) - float(np.median(near[width]))) / distance) for width in plan.anchors
    ]
    quartiles = [np.percentile(near[width], [25, 75]) for width in plan.widths]
    return PassTimes(
        widths=plan.widths,
        seconds=medians,
        slope_s=slopes(medians, plan.widths, plan.anchors, rises, plan.reference_context),
        spread=tuple(float(high - low) / median for (low, high), median in zip(quartiles, medians, strict=True)),
    )


def entry_of(
    draft: PassTimes,
    verify: PassTimes,
    plan: TimingPlan,
    *,
    compression: str,
    dtype: str,
    kernel: str,
    draft_kernel: str,
    batch: int = 1,
) -> CostEntry:
    """A cost table's entry; kernels describe in words what multiplies the weights."""
    return CostEntry(
        compression=compression,
        dtype=dtype,
        reference_context=plan.reference_context,
        draft_widths=draft.widths,
        draft_s=draft.seconds,
        draft_context_slope_s=draft.slope_s,
        verify_widths=verify.widths,
        verify_s=verify.seconds,
        verify_context_slope_s=verify.slope_s,
        spread=verify.spread,
        batch=batch,
        contexts=(plan.reference_context, plan.far_context),
        kernel=kernel,
        draft_kernel=draft_kernel,
    )


def fit_of_runs(predicted_s: list[float], measured_s: list[float], *, prompts: int, tokens: int) -> CostFit:
    """How well a table predicts whole runs; the spread is the interquartile range of the relative errors."""
    if not measured_s:
        raise ConfigError("Expected prompts that take a decode step, got texts that end with their first token.")
    errors = np.array(predicted_s) / np.array(measured_s) - 1
    spread = float(np.subtract(*np.percentile(errors, [75, 25])))
    return CostFit.of(prompts=prompts, tokens=tokens, predicted_s=predicted_s, measured_s=measured_s, spread=spread)


def slopes(
    seconds: Sequence[float],
    widths: Sequence[int],
    anchors: Sequence[int],
    rises: Sequence[float],
    reference_context: int,
) -> tuple[float, ...]:
    """Slopes of every width from the `rises` at the anchors.

    A slope is capped so that an empty context takes at least half of the time at the reference context.

    >>> slopes((1.0, 1.0, 1.0), (1, 2, 3), (1, 3), (0.01, 0.09), 10)
    (0.01, 0.05, 0.05)
    """
    between = np.interp(widths, anchors, rises)
    return tuple(np.minimum(between, 0.5 * np.array(seconds) / reference_context).tolist())


class RandomGamma:
    """Draws gamma before every step, from 0 to a largest one: visits every lag and width when a table is checked."""

    name = "random"
    charges_decision = False

    def __init__(self, largest: int, seed: int = 0) -> None:
        self._largest, self._generator = largest, np.random.default_rng(seed)

    def reset(self) -> None:
        """Does nothing."""

    def act(self, observation: FloatArray) -> int:
        """A gamma."""
        del observation
        return int(self._generator.integers(0, self._largest + 1))

    def act_batch(self, observations: FloatArray) -> IntArray:
        """A gamma a row."""
        return self._generator.integers(0, self._largest + 1, len(observations))

    def learn(self, outcome: StepOutcome) -> None:
        """Does nothing."""
