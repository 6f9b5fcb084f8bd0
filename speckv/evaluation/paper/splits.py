# SPDX-License-Identifier: Apache-2.0
"""Which records a predictor is fitted to, and which it is tested on."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from speckv.types import IntArray

TEST_SHARE = 0.2
NUM_FOLDS = 5


def published_split(labels: Sequence[str], seed: int) -> tuple[IntArray, IntArray]:
    """The paper's split of records: scikit-learn's `train_test_split(stratify=labels, random_state=seed)`.

    Args:
        labels: Stratum of each record.
        seed: scikit-learn's `random_state`.

    Returns:
        Train and test records, a fifth of each stratum being test, in scikit-learn's order.

    >>> [len(part) for part in published_split(["a"] * 10 + ["b"] * 15, seed=0)]
    [20, 5]
    """
    rng = np.random.RandomState(seed)  # scikit-learn draws from this generator, so no newer one will do
    _, codes = np.unique(np.asarray(labels), return_inverse=True)
    counts = np.bincount(codes)
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(counts)[:-1])
    num_test = math.ceil(TEST_SHARE * len(labels))
    num_train = _shares(counts, len(labels) - num_test, rng)
    num_tested = _shares(counts - num_train, num_test, rng)
    train: list[IntArray] = []
    test: list[IntArray] = []
    for rows, first, second in zip(members, num_train, num_tested, strict=True):
        drawn = rows[rng.permutation(len(rows))]
        train.append(drawn[:first])
        test.append(drawn[first : first + second])
    return rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(test))


def _shares(counts: IntArray, total: int, rng: np.random.RandomState) -> IntArray:
    """How many of `total` draws each stratum gets: its share rounded down, the rest to the largest remainders."""
    exact = counts / counts.sum() * total
    shares = np.floor(exact)
    left = int(total - shares.sum())
    remainders = exact - shares
    for value in np.sort(np.unique(remainders))[::-1]:
        if left <= 0:
            break
        places = np.flatnonzero(remainders == value)
        number = min(len(places), left)
        shares[rng.choice(places, size=number, replace=False)] += 1
        left -= number
    whole: IntArray = shares.astype(np.int64)
    return whole


def folds(labels: IntArray, seed: int) -> IntArray:
    """Deals the members of each stratum out to five folds.

    Args:
        labels: Stratum of each member.
        seed: Of the draw.

    Returns:
        Fold of each member.

    >>> sorted(folds(np.zeros(5, np.int64), seed=0).tolist())
    [0, 1, 2, 3, 4]
    """
    rng = np.random.default_rng(seed)
    dealt = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        dealt[rng.permutation(members)] = np.arange(len(members)) % NUM_FOLDS
    return dealt


def pairs_of(fold: IntArray) -> list[tuple[IntArray, IntArray]]:
    """Train and test members for each fold that has any; together the test members are all."""
    return [(np.flatnonzero(fold != number), np.flatnonzero(fold == number)) for number in np.unique(fold)]


def label_texts(*columns: NDArray[np.str_]) -> list[str]:
    """Joins names into one stratum a record, as the paper does.

    >>> label_texts(np.array(["fp16", "nf4"]), np.array(["code", "chat"]))
    ['fp16_code', 'nf4_chat']
    """
    return ["_".join(parts) for parts in zip(*columns, strict=True)]
