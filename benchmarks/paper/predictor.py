# SPDX-License-Identifier: Apache-2.0
"""The paper's predictor of acceptance rates, and the splits it is fitted and tested on.

The network is scikit-learn's `MLPRegressor(hidden_layer_sizes=(16,), max_iter=500, random_state=seed)`, the published
split its `train_test_split`. Both are reimplemented in NumPy with the same random draws, because the paper's figures
depend on the seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from speckv.types import IntArray

Float64 = NDArray[np.float64]

HIDDEN = 16
MAX_EPOCHS = 500
_BATCH = 200
_LEARNING_RATE, _BETA1, _BETA2, _EPSILON = 1e-3, 0.9, 0.999, 1e-8
_L2 = 1e-4
_TOLERANCE, _PATIENCE = 1e-4, 10

TEST_SHARE = 0.2
NUM_FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Regressor:
    """A fitted network of one hidden ReLU layer.

    Attributes:
        parameters: Both matrices, of shape [inputs, outputs], then both biases.
    """

    parameters: tuple[Float64, ...]

    def predict(self, inputs: Float64) -> Float64:
        """Shape [N]; acceptance rates, clipped to [0, 1] as in the paper."""
        first, second, bias, last = self.parameters
        hidden = np.maximum(inputs @ first + bias, 0.0)
        return np.clip((hidden @ second + last)[:, 0], 0.0, 1.0)


def fit_regressor(inputs: Float64, targets: Float64, seed: int) -> Regressor:
    """Fits acceptance rates with Adam on raw inputs, until the squared error stops falling.

    Args:
        inputs: Shape [N, features].
        targets: Shape [N].
        seed: scikit-learn's `random_state`.
    """
    rng = np.random.RandomState(seed)  # scikit-learn draws from this generator, so no newer one will do
    parameters = _initial(inputs.shape[1], rng)
    adam = _Adam(parameters)
    order = np.arange(len(inputs))
    best, stale = np.inf, 0
    for _ in range(MAX_EPOCHS):
        places = np.arange(len(inputs))
        rng.shuffle(places)
        order = order[places]
        total = 0.0
        for begin in range(0, len(order), _BATCH):
            rows = order[begin : begin + _BATCH]
            loss, gradients = _loss(parameters, inputs[rows], targets[rows])
            total += loss * len(rows)
            adam.step(gradients)
        mean = total / len(inputs)
        stale = stale + 1 if mean > best - _TOLERANCE else 0
        best = min(best, mean)
        if stale > _PATIENCE:
            break
    return Regressor(parameters=tuple(parameters))


def _initial(num_features: int, rng: np.random.RandomState) -> list[Float64]:
    weights, biases = [], []
    for fan_in, fan_out in pairwise((num_features, HIDDEN, 1)):
        bound = np.sqrt(6.0 / (fan_in + fan_out))
        weights.append(rng.uniform(-bound, bound, (fan_in, fan_out)))
        biases.append(rng.uniform(-bound, bound, fan_out))
    return [*weights, *biases]


def _loss(parameters: list[Float64], inputs: Float64, targets: Float64) -> tuple[float, list[Float64]]:
    """Half the mean squared error plus the L2 penalty, and the gradients."""
    first, second, bias, last = parameters
    number = len(inputs)
    hidden = np.maximum(inputs @ first + bias, 0.0)
    error = hidden @ second + last - targets[:, np.newaxis]
    back = error @ second.T
    back[hidden == 0] = 0.0
    penalty = 0.5 * _L2 * (np.sum(first**2) + np.sum(second**2)) / number
    gradients = [
        (inputs.T @ back + _L2 * first) / number,
        (hidden.T @ error + _L2 * second) / number,
        back.mean(axis=0),
        error.mean(axis=0),
    ]
    return float(np.mean(error**2) / 2 + penalty), gradients


class _Adam:
    """Adam (Kingma and Ba 2015), changing the parameters in place."""

    def __init__(self, parameters: list[Float64]) -> None:
        self._parameters = parameters
        self._means = [np.zeros_like(p) for p in parameters]
        self._squares = [np.zeros_like(p) for p in parameters]
        self._count = 0

    def step(self, gradients: list[Float64]) -> None:
        self._count += 1
        rate = _LEARNING_RATE * np.sqrt(1 - _BETA2**self._count) / (1 - _BETA1**self._count)
        for index, gradient in enumerate(gradients):
            self._means[index] = _BETA1 * self._means[index] + (1 - _BETA1) * gradient
            self._squares[index] = _BETA2 * self._squares[index] + (1 - _BETA2) * gradient**2
            self._parameters[index] -= rate * self._means[index] / (np.sqrt(self._squares[index]) + _EPSILON)


def published_split(labels: Sequence[str], seed: int) -> tuple[IntArray, IntArray]:
    """The paper's split of records: scikit-learn's `train_test_split(stratify=labels, random_state=seed)`.

    Args:
        labels: Stratum of each record.
        seed: scikit-learn's `random_state`.

    Returns:
        Train and test records in scikit-learn's order; a fifth of each stratum is test.
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
    """Divides `total` among strata: each share rounded down, the rest to the largest remainders."""
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
    """Fold of each member: the members of each stratum (label), shuffled and distributed over five folds."""
    rng = np.random.default_rng(seed)
    fold = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        fold[rng.permutation(members)] = np.arange(len(members)) % NUM_FOLDS
    return fold


def train_test_pairs(fold: IntArray) -> list[tuple[IntArray, IntArray]]:
    """Train and test members of each non-empty fold; every member is tested once."""
    return [(np.flatnonzero(fold != number), np.flatnonzero(fold == number)) for number in np.unique(fold)]
