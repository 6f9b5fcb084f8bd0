# SPDX-License-Identifier: Apache-2.0
"""The paper's policies and its way to score them: by what the predictor says about each."""

import numpy as np
from numpy.typing import NDArray

from speckv.evaluation.paper.published import POLICIES, Table
from speckv.evaluation.paper.records import FIXED_GAMMA, Records
from speckv.evaluation.paper.regressor import Regressor, fit_regressor
from speckv.evaluation.paper.splits import label_texts, published_split
from speckv.types import IntArray

Float64 = NDArray[np.float64]

NEUTRAL = (0.0, 1.0, 0.0, 1.0)
"""Signals before a run's first step: a draft that is sure of itself, as in our own observation."""


def predictor_inputs(records: Records, *, causal: bool) -> Float64:
    """Shape [steps, 6]; four signals, compression and gamma, as the paper lists them.

    Args:
        records: All steps.
        causal: Whether the signals are those of the run's step before, which a decoder knows when it decides; else
            those of the drafted tokens whose number is to be decided on, as in the paper.
    """
    steps = records.steps
    signals = steps.signals
    if causal:
        signals = np.roll(signals, 1, axis=0)
        signals[steps.is_first] = NEUTRAL
    return np.column_stack([signals, steps.compression, steps.gamma]).astype(np.float64)


def predicted_rates(model: Regressor, inputs: Float64, gammas: IntArray) -> Float64:
    """Shape [N, gammas]; acceptance rate that the model expects if each gamma had been drafted.

    The signals stay those of the gamma that was logged: a mean and a minimum over two tokens are read as if they were
    over eight, which makes long drafts look better than they are.
    """
    asked = np.repeat(inputs, len(gammas), axis=0)
    asked[:, -1] = np.tile(gammas, len(inputs))
    return model.predict(asked).reshape(len(inputs), len(gammas))


def expected_tokens(rates: Float64, gammas: IntArray) -> Float64:
    """The paper's objective, acceptance rate * gamma + 1; nothing in it is a cost.

    >>> expected_tokens(np.array([[0.5, 0.5]]), np.array([2, 8])).tolist()
    [[2.0, 5.0]]
    """
    return rates * gammas + 1.0


def best_by_tokens(records: Records) -> IntArray:
    """Shape [compressions]; place of the gamma of most tokens a step, which is the paper's Fixed-best."""
    runs = records.runs
    rates = np.zeros((len(records.compressions), len(records.gammas)))
    for place, gamma in enumerate(records.gammas):
        for compression in range(len(records.compressions)):
            rows = (runs.compression == compression) & (runs.gamma == gamma)
            rates[compression, place] = runs.tokens[rows].sum() / runs.steps[rows].sum()
    best: IntArray = rates.argmax(axis=1)
    return best


def self_scores(records: Records, expected: Float64) -> Float64:
    """Shape [steps, policies]; what each policy is credited with at every step, by the predictor that SpecKV follows.

    Args:
        records: All steps.
        expected: Shape [steps, gammas]; from `expected_tokens`.
    """
    steps, rows = records.steps, np.arange(len(expected))
    fixed = int(np.searchsorted(records.gammas, FIXED_GAMMA))
    oracle = np.searchsorted(records.gammas, records.oracle)[steps.compression, steps.task]
    columns = (
        expected[:, fixed],
        expected[rows, best_by_tokens(records)[steps.compression]],
        expected[rows, oracle],
        expected.max(axis=1),
    )
    assert len(columns) == len(POLICIES)
    return np.column_stack(columns)


def logged_rates(records: Records, rates: Float64) -> Float64:
    """Shape [steps]; the prediction for the gamma that was logged."""
    places = np.searchsorted(records.gammas, records.steps.gamma)
    logged: Float64 = rates[np.arange(len(rates)), places]
    return logged


def strata(records: Records) -> list[str]:
    """Compression and task of each step: what the paper's split is stratified by."""
    steps = records.steps
    return label_texts(np.array(records.compressions)[steps.compression], np.array(records.tasks)[steps.task])


def recompute(records: Records, seed: int) -> tuple[Table, Float64]:
    """Goes the paper's way: random split of steps, the same step's signals, fitted anew to all before scoring.

    Returns:
        The table, and the acceptance rates that the last fit predicts, of shape [steps, gammas].
    """
    steps, inputs = records.steps, predictor_inputs(records, causal=False)
    train, test = published_split(strata(records), seed)
    reported = fit_regressor(inputs[train], steps.acceptance_rate[train], seed).predict(inputs[test])
    rates = predicted_rates(fit_regressor(inputs, steps.acceptance_rate, seed), inputs, records.gammas)
    scores = self_scores(records, expected_tokens(rates, records.gammas))[test]
    compression, task = steps.compression[test], steps.task[test]
    by_compression = [scores[compression == c].mean(axis=0) for c in range(len(records.compressions))]
    cells = [
        scores[(compression == c) & (task == t)].mean(axis=0)[[0, -1]]
        for c in range(len(records.compressions))
        for t in range(len(records.tasks))
    ]
    overall = scores.mean(axis=0)
    truth = steps.acceptance_rate[test]
    table = Table(
        policies=np.stack([*by_compression, overall]),
        breakdown=np.stack(cells).reshape(len(records.compressions), len(records.tasks), 2),
        improvement=float(overall[-1] / overall[0] - 1),
        correlation=float(np.corrcoef(truth, reported)[0, 1]),
        squared_error=float(np.mean((truth - reported) ** 2)),
        num_train=len(train),
        num_test=len(test),
    )
    return table, rates
