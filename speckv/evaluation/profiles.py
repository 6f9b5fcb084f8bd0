# SPDX-License-Identifier: Apache-2.0
"""Performance profiles: on what share of prompts a controller is at least so much faster than the best fixed gamma.

One number can hide that a controller wins much on some prompts and loses on others; the whole distribution cannot.

Source:
    Dolan and Moré 2002, Mathematical Programming 91(2); with bootstrap bands, Agarwal et al. 2021, arXiv:2108.13264,
    section 4.2, where a run on a task is what a prompt decoded by a run is here.
"""

from dataclasses import dataclass

import numpy as np

from speckv.evaluation.bootstrap import MIN_PROMPTS, Float64
from speckv.evaluation.hierarchy import Entrant
from speckv.evaluation.metrics import Group, Sums

TAUS: tuple[float, ...] = tuple(k / 40 for k in range(24, 65))
"""Speed-ups at which a profile is taken, 0.6 to 1.6."""
_TIE = 1e-9
"""Relative; two equal times may differ by their rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Shares of prompts by speed-up.

    Attributes:
        controller: Its name.
        compression: One compression or "all".
        shares: Shape [taus]; share of prompts, over all runs, with a speed-up of at least tau.
        low: Shape [taus]; lower end of the pointwise interval, None where there are too few prompts.
        high: Likewise.
    """

    controller: str
    compression: str
    shares: Float64
    low: Float64 | None
    high: Float64 | None

    def share(self, tau: float) -> float:
        """The share at one of `TAUS`."""
        return float(self.shares[TAUS.index(tau)])


def speedup_profile(
    entrant: Entrant, best_fixed: Sums, group: Group, counts: Float64, *, confidence: float = 0.95
) -> Profile:
    """Takes one profile. In a group of several compressions a prompt counts once at each of them.

    Args:
        entrant: The controller.
        best_fixed: The number to beat.
        group: Where.
        counts: Shape [resamples, prompts of the whole grid], from `resample_counts`.
        confidence: Coverage that is aimed at, at each tau by itself.
    """
    fixed = group.take(best_fixed.seconds)
    recorded = fixed > 0
    reached = np.stack([_reached(fixed, group.take(run.seconds)) for run in entrant.runs])
    shares = reached.sum(axis=(0, 1)) / (len(entrant.runs) * recorded.sum())
    low = high = None
    if np.count_nonzero(recorded.any(axis=1)) >= MIN_PROMPTS:
        weights = counts[:, group.prompts]
        above = np.zeros((len(weights), len(TAUS)))
        for run, hits in enumerate(reached):
            above += entrant.shares[:, [run]] * (weights @ hits)
        below = weights @ recorded.sum(axis=1)
        usable = below > 0
        tail = 50.0 * (1.0 - confidence)
        low, high = np.percentile(above[usable] / below[usable, np.newaxis], [tail, 100.0 - tail], axis=0)
    return Profile(controller=entrant.name, compression=group.compression, shares=shares, low=low, high=high)


def _reached(fixed: Float64, ours: Float64) -> Float64:
    """How many recordings of each prompt reach each tau; shape [prompts, taus]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        speedups = fixed / ours
    # What was not recorded is 0 / 0 and reaches nothing.
    reached: Float64 = (speedups[:, :, np.newaxis] >= np.array(TAUS) * (1.0 - _TIE)).sum(axis=1).astype(np.float64)
    return reached
