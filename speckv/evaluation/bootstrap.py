# SPDX-License-Identifier: Apache-2.0
"""Paired cluster bootstrap over prompts: whole prompts are drawn with replacement, within their task.

Steps of one prompt are correlated, and all controllers decode the same prompts, so every controller is evaluated on the
same draw. Counts are summed before they are divided, in each resample as in the estimate itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speckv.errors import ConfigError

Float64 = NDArray[np.float64]

MIN_PROMPTS = 6
"""Fewest prompts with intervals and claims: a sign-flip test of n prompts has p of at least 2 / 2^n, 0.03 for 6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate between its bounds; the bounds are None with too few prompts."""

    estimate: float
    low: float | None = None
    high: float | None = None


def geometric_mean(values: Float64) -> Float64:
    """Geometric mean of positive values along the last axis.

    >>> geometric_mean(np.array([1.0, 4.0])).item()
    2.0
    """
    mean: Float64 = np.exp(np.log(values).mean(axis=-1))
    return mean


def resample_counts(strata: Sequence[str], num_resamples: int, seed: int) -> Float64:
    """Number of times that each prompt occurs in each resample, of shape [resamples, prompts].

    `strata` holds one label per prompt, its task; resamples keep the number of prompts of each.

    >>> resample_counts(["code", "code", "math"], 4, seed=0).sum(axis=1)
    array([3., 3., 3., 3.])
    """
    if num_resamples < 1:
        raise ConfigError(f"Expected at least 1 bootstrap resample, got {num_resamples}.")
    rng = np.random.default_rng(seed)
    labels = np.asarray(strata)
    counts = np.zeros((num_resamples, len(labels)))
    for label in sorted(set(strata)):
        members = np.flatnonzero(labels == label)
        share = np.full(len(members), 1.0 / len(members))
        counts[:, members] = rng.multinomial(len(members), share, size=num_resamples)
    return counts


def percentile_interval(estimate: float, replicates: Float64, confidence: float = 0.95) -> Interval:
    """The interval between the outer percentiles of the finite replicates.

    >>> percentile_interval(0.5, np.arange(101) / 100.0, confidence=0.9)
    Interval(estimate=0.5, low=0.05, high=0.95)
    """
    usable = replicates[np.isfinite(replicates)]
    if not len(usable):
        return Interval(estimate=estimate)
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(usable, [tail, 100.0 - tail])
    return Interval(estimate=estimate, low=float(low), high=float(high))


def ratio_interval(numerator: Float64, denominator: Float64, counts: Float64, *, confidence: float = 0.95) -> Interval:
    """Ratio of sums, sum(numerator) / sum(denominator), with a percentile interval over prompts resampled jointly.

    Both have shape [prompts] or [prompts, columns]; with columns, the result is the geometric mean of their ratios,
    which weighs columns of different speed equally. `counts` is from `resample_counts`.
    """

    def ratio(above: Float64, below: Float64) -> Float64:
        return above / below if numerator.ndim == 1 else geometric_mean(above / below)

    estimate = float(ratio(numerator.sum(axis=0), denominator.sum(axis=0)))
    if np.count_nonzero(denominator.reshape(len(denominator), -1).sum(axis=1)) < MIN_PROMPTS:
        return Interval(estimate=estimate)
    with np.errstate(divide="ignore", invalid="ignore"):
        replicates = ratio(counts @ numerator, counts @ denominator)
    return percentile_interval(estimate, replicates, confidence)
