# SPDX-License-Identifier: Apache-2.0
"""Paired significance tests: each controller against the best fixed gamma, and against the one that ranks first.

The sign-flip test swaps the times of two controllers at random prompts and counts how often the difference is as large
as the measured one. It assumes no distribution and is exact for any number of prompts. Its statistic is a sum of
differences, zero exactly where the ratio of the sums in the tables is one.

Each compression, and all of them together, has a family of comparisons per question. Against the best fixed gamma the
family holds every controller. The controller that ranks first is selected on the same prompts, which favours it, so
that family holds every pair of controllers, of which only those with the first are shown.

Source:
    Fisher 1935, The Design of Experiments, section 21, for the test; Phipson and Smyth 2010, Statistical Applications
    in Genetics and Molecular Biology 9(1), for counting the data among the flips. Holm 1979, Scandinavian Journal of
    Statistics 6(2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from speckv.errors import ConfigError
from speckv.evaluation.bootstrap import Float64
from speckv.evaluation.entrants import Entrant
from speckv.evaluation.metrics import Group

CHUNK = 4096
"""Sign flips held in memory at once."""
_TIE = 1e-9
"""Relative rounding difference of equal sums added in another order."""


def holm(p_values: Float64) -> Float64:
    """Adjusts the p-values of a family so that rejecting all up to 0.05 has at most a 5 % chance of a false rejection.

    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    number = len(p_values)
    order = np.argsort(p_values, kind="stable")
    steps = (number - np.arange(number)) * p_values[order]
    adjusted = np.empty(number)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def sign_flip_p_values(
    differences: Float64,
    *,
    num_flips: int,
    seed: int,
    seed_errors: Float64 | None = None,
    freedom: NDArray[np.int64] | None = None,
) -> Float64:
    """Two-sided p-values, of shape [comparisons], of the hypothesis that the differences of a column sum to zero.

    Where a controller is several runs, the flipped sums get an error: the standard error over runs times Student's t.

    Args:
        differences: Shape [prompts, comparisons]; each column's means over runs.
        num_flips: Random flips of the signs, the same for all columns; p-values are multiples of 1 / (num_flips + 1).
        seed_errors: Shape [controllers, comparisons]; standard error of the column's sum due to a controller's runs; 0
            where it takes no part.
        freedom: Shape [controllers]; runs of each minus one, at least 1.
    """
    if num_flips < 1:
        raise ConfigError(f"Expected at least 1 sign flip, got {num_flips}.")
    rng = np.random.default_rng([seed, 2])
    least = np.abs(differences.sum(axis=0)) * (1.0 - _TIE)
    reached = np.zeros(differences.shape[1], np.int64)
    for start in range(0, num_flips, CHUNK):
        count = min(CHUNK, num_flips - start)
        signs = rng.integers(0, 2, (count, len(differences))) * 2.0 - 1.0
        flipped = signs @ differences
        if seed_errors is not None and freedom is not None:
            flipped += rng.standard_t(freedom, (count, len(freedom))) @ seed_errors
        reached += (np.abs(flipped) >= least).sum(axis=0)
    p_values: Float64 = (1 + reached) / (1 + num_flips)
    return p_values


LEVEL = 0.05
"""Chance of any false claim in a family."""
AHEAD, BEHIND, EQUAL = "ahead of", "behind", "not distinguishable from"
VS_BEST_FIXED, VS_FIRST = "best fixed gamma", "first-ranked controller"
FLIPS_PER_PAIR = 40
"""Lets a p-value be small enough for Holm's first step, which multiplies it by the number of pairs."""
_NOISE = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedComparison:
    """One controller against another; `speedup` is a geometric mean over compressions, `p_holm` an adjusted p-value."""

    controller: str
    speedup: float
    p_value: float
    p_holm: float
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Comparisons whose p-values are adjusted together; `against` is the reference's name, `question` its kind."""

    question: str
    compression: str
    against: str
    num_comparisons: int
    num_flips: int
    pairs: tuple[PairedComparison, ...]


def outcome_of(speedup: float, p_holm: float) -> str:
    """Outcome of a comparison.

    >>> outcome_of(1.02, 0.01), outcome_of(0.98, 0.01), outcome_of(1.02, 0.2)
    ('ahead of', 'behind', 'not distinguishable from')
    """
    if p_holm > LEVEL:
        return EQUAL
    return AHEAD if speedup > 1.0 else BEHIND


class _Pairs(NamedTuple):
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    speedups: Float64
    p_values: Float64


def paired_families(
    entrants: Sequence[Entrant], best_fixed: Entrant, groups: Sequence[Group], *, num_resamples: int, seed: int
) -> tuple[Family, ...]:
    """Compares the entrants in each group with the best fixed gamma, and with the entrant that ranks first.

    More than `num_resamples` sign flips are made for a family too large for that many.
    """
    contestants = (best_fixed, *entrants)
    number = len(contestants) * (len(contestants) - 1) // 2
    num_flips = max(num_resamples, FLIPS_PER_PAIR * number)
    families = []
    for group in groups if entrants else ():
        pairs = _compare(contestants, group, num_flips, seed)
        families.append(_family(VS_BEST_FIXED, contestants, 0, pairs, pairs.left == 0, group, num_flips))
        if len(entrants) > 1:
            first = 1 + int(np.argmin([_log_seconds(e, group) for e in entrants]))
            families.append(_family(VS_FIRST, contestants, first, pairs, pairs.left > 0, group, num_flips))
    return tuple(families)


def family_against(
    first: Entrant, others: Sequence[Entrant], group: Group, *, question: str, num_resamples: int, seed: int
) -> Family:
    """Compares some entrants with one; `question` names the family, the rest is as in `paired_families`."""
    contestants = (first, *others)
    num_flips = max(num_resamples, FLIPS_PER_PAIR * len(others))
    pairs = _compare(contestants, group, num_flips, seed)
    return _family(question, contestants, 0, pairs, pairs.left == 0, group, num_flips)


def _log_seconds(entrant: Entrant, group: Group) -> float:
    return float(np.log(group.take(entrant.sums.seconds).sum(axis=0)).mean())


def _compare(contestants: Sequence[Entrant], group: Group, num_flips: int, seed: int) -> _Pairs:
    """A prompt's difference is that of its shares of both entrants' time at each compression.

    Flipping its sign swaps its times, as the pair's total A + B depends on neither. Summed over prompts the shares give
    sum_c (B_c - A_c) / (A_c + B_c), which is, up to terms of third order, half the sum over compressions of
    log(B_c / A_c): compressions weigh equally.
    """
    left, right = (np.array(side) for side in zip(*combinations(range(len(contestants)), 2), strict=True))
    seconds = np.stack([group.take(c.sums.seconds) for c in contestants])
    totals = seconds.sum(axis=1)
    both = totals[left] + totals[right]
    differences = np.einsum("mpc,mc->pm", seconds[right] - seconds[left], 1.0 / both)
    # Times of equal decisions may differ by rounding, whose signs the test would take for data.
    differences[np.abs(differences) < _NOISE] = 0.0
    errors = np.zeros((len(contestants), len(left)))
    for place, contestant in enumerate(contestants):
        errors[place] = _seed_error(contestant, group, both) * ((left == place) | (right == place))
    p_values = sign_flip_p_values(
        differences,
        num_flips=num_flips,
        seed=seed,
        seed_errors=errors if errors.any() else None,
        freedom=np.array([max(len(c.runs) - 1, 1) for c in contestants]),
    )
    return _Pairs(left, right, np.exp(np.log(totals[right] / totals[left]).mean(axis=1)), p_values)


def _seed_error(entrant: Entrant, group: Group, both: Float64) -> Float64:
    if len(entrant.runs) < 2:
        return np.zeros(len(both))
    by_run = np.stack([group.take(run.seconds).sum(axis=0) for run in entrant.runs])
    spread = (by_run @ (1.0 / both).T).std(axis=0, ddof=1)
    error: Float64 = spread / np.sqrt(len(entrant.runs))
    return error


def _family(
    question: str,
    contestants: Sequence[Entrant],
    against: int,
    pairs: _Pairs,
    members: NDArray[np.bool_],
    group: Group,
    num_flips: int,
) -> Family:
    adjusted = np.full(len(members), np.nan)
    adjusted[members] = holm(pairs.p_values[members])
    found = []
    for place, contestant in enumerate(contestants):
        if place in (0, against):
            continue
        low, high = sorted((place, against))
        (pair,) = np.flatnonzero((pairs.left == low) & (pairs.right == high))
        # A pair's speed-up is the left one's over the right one.
        speedup = float(pairs.speedups[pair]) if place == low else 1.0 / float(pairs.speedups[pair])
        found.append(
            PairedComparison(
                controller=contestant.name,
                speedup=speedup,
                p_value=float(pairs.p_values[pair]),
                p_holm=float(adjusted[pair]),
                outcome=outcome_of(speedup, float(adjusted[pair])),
            )
        )
    return Family(
        question=question,
        compression=group.compression,
        against=contestants[against].name,
        num_comparisons=int(members.sum()),
        num_flips=num_flips,
        pairs=tuple(found),
    )
