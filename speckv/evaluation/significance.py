# SPDX-License-Identifier: Apache-2.0
"""Tests of paired differences, and what many of them together may claim.

A sign-flip test asks how often differences as large would come about if, for each prompt, it were a coin's toss which
of two controllers had which time. It takes no distribution for granted, is exact however few prompts there are, and
keeps whole prompts together. Its statistic is a sum of differences, which is zero just where the ratio of the sums is
one: a test of the mean of log ratios would be about another quantity than the one in the tables.

Source:
    Fisher 1935, The Design of Experiments, section 21, for the test; Phipson and Smyth 2010, Statistical Applications
    in Genetics and Molecular Biology 9(1), for counting the data among the flips. Holm 1979, Scandinavian Journal of
    Statistics 6(2).
"""

import numpy as np
from numpy.typing import NDArray

from speckv.errors import ConfigError
from speckv.evaluation.bootstrap import Float64

CHUNK = 4096
"""Sign flips held in memory at once."""
_TIE = 1e-9
"""Relative difference below which two sums count as equal: they were added in another order."""


def holm(p_values: Float64) -> Float64:
    """Adjusts p-values so that rejecting all up to 0.05 has a chance of at most 5 % of any false rejection.

    Args:
        p_values: Of every comparison of a family, in any order.

    Returns:
        Adjusted ones, in the same order.

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
    """Two-sided p-values of the hypothesis that the differences of each column have the sum zero.

    Where a controller is several runs, which runs there are is chance too. The flipped sums then get an error of that
    size added: the standard error of the mean over runs, times a draw of Student's t, whose wide tails stand for not
    knowing the spread of few runs.

    Args:
        differences: Shape [prompts, comparisons]; each column's means over runs.
        num_flips: Random flips of the signs; p-values are multiples of 1 / (num_flips + 1).
        seed: Of the flips; every column meets the same ones.
        seed_errors: Shape [controllers, comparisons]; standard error of the column's sum that a controller's runs
            bring; 0 where it plays no part.
        freedom: Shape [controllers]; runs of each less one, at least 1.

    Returns:
        Shape [comparisons].
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
