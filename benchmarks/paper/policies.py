# SPDX-License-Identifier: Apache-2.0
"""The paper's policies: the tokens per step that its predictor credits them with, and what they realise in its log.

Realised figures:

- A constant, or any policy that is constant for a compression and task, was run: tokens and seconds of those runs.
- SpecKV was never run. In the steps logged at the largest gamma the outcome of every smaller gamma is known as well,
  because a shorter draft is a prefix of the longer one: min(accepted, gamma) + 1 tokens. Each step is charged the mean
  seconds of a step of its compression and gamma. The states are those of a constant largest gamma; SpecKV mostly
  chooses the largest, so they are nearly its own.
- As a check, the steps in which the logged gamma is the chosen one.
"""

from dataclasses import dataclass

import numpy as np

from benchmarks.paper.predictor import Float64, Regressor, fit_regressor, published_split
from benchmarks.paper.released import FIXED_GAMMA, POLICIES, PaperTable, Records
from speckv.evaluation.bootstrap import Interval, percentile_interval
from speckv.types import BoolArray, IntArray

NEUTRAL = (0.0, 1.0, 0.0, 1.0)
"""Signals before a run's first step: a fully confident draft, as in SpecKV's own observation."""


def predictor_inputs(records: Records, *, causal: bool) -> Float64:
    """Shape [steps, 6]: four signals, compression and gamma, in the paper's order.

    Args:
        causal: Whether the signals are those of the previous step of the run, which a decoder has when it decides.
            Otherwise, as in the paper, those of the drafted tokens whose number is to be decided.
    """
    steps = records.steps
    signals = steps.signals
    if causal:
        signals = np.roll(signals, 1, axis=0)
        signals[steps.is_first] = NEUTRAL
    return np.column_stack([signals, steps.compression, steps.gamma]).astype(np.float64)


def predicted_rates(model: Regressor, inputs: Float64, gammas: IntArray) -> Float64:
    """Shape [N, gammas]; predicted acceptance rate for each gamma.

    The signals stay those of the logged gamma: a mean and a minimum over two tokens are used as if they were over
    eight, which makes long drafts look better than they are.
    """
    repeated = np.repeat(inputs, len(gammas), axis=0)
    repeated[:, -1] = np.tile(gammas, len(inputs))
    return model.predict(repeated).reshape(len(inputs), len(gammas))


def expected_tokens(rates: Float64, gammas: IntArray) -> Float64:
    """The paper's objective, acceptance rate * gamma + 1. It contains no cost."""
    return rates * gammas + 1.0


def best_by_tokens(records: Records) -> IntArray:
    """Shape [compressions]; index of the gamma with the most tokens per step, which is the paper's Fixed-best."""
    runs = records.runs
    rates = np.zeros((len(records.compressions), len(records.gammas)))
    for place, gamma in enumerate(records.gammas):
        for compression in range(len(records.compressions)):
            rows = (runs.compression == compression) & (runs.gamma == gamma)
            rates[compression, place] = runs.tokens[rows].sum() / runs.steps[rows].sum()
    best: IntArray = rates.argmax(axis=1)
    return best


def credited_tokens(records: Records, expected: Float64) -> Float64:
    """Shape [steps, policies]; tokens per step that the predictor used by SpecKV credits each policy with.

    Args:
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
    """Shape [steps]; the prediction for the logged gamma."""
    places = np.searchsorted(records.gammas, records.steps.gamma)
    logged: Float64 = rates[np.arange(len(rates)), places]
    return logged


def strata(records: Records) -> list[str]:
    """Compression and task of each step, by which the paper's split is stratified."""
    steps = records.steps
    return [f"{records.compressions[c]}_{records.tasks[t]}" for c, t in zip(steps.compression, steps.task, strict=True)]


def recompute(records: Records, seed: int) -> tuple[PaperTable, Float64]:
    """Repeats the paper's procedure: random split of steps, signals of the same step, a refit to all before scoring.

    Returns:
        The table, and the acceptance rates predicted by the refitted network, of shape [steps, gammas].
    """
    steps, inputs = records.steps, predictor_inputs(records, causal=False)
    train, test = published_split(strata(records), seed)
    reported = fit_regressor(inputs[train], steps.acceptance_rate[train], seed).predict(inputs[test])
    rates = predicted_rates(fit_regressor(inputs, steps.acceptance_rate, seed), inputs, records.gammas)
    scores = credited_tokens(records, expected_tokens(rates, records.gammas))[test]
    compression, task = steps.compression[test], steps.task[test]
    by_compression = [scores[compression == c].mean(axis=0) for c in range(len(records.compressions))]
    cells = [
        scores[(compression == c) & (task == t)].mean(axis=0)[[0, -1]]
        for c in range(len(records.compressions))
        for t in range(len(records.tasks))
    ]
    overall = scores.mean(axis=0)
    truth = steps.acceptance_rate[test]
    table = PaperTable(
        policies=np.stack([*by_compression, overall]),
        breakdown=np.stack(cells).reshape(len(records.compressions), len(records.tasks), 2),
        improvement=float(overall[-1] / overall[0] - 1),
        correlation=float(np.corrcoef(truth, reported)[0, 1]),
        squared_error=float(np.mean((truth - reported) ** 2)),
        num_train=len(train),
        num_test=len(test),
    )
    return table, rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Realised:
    """Tokens, seconds (paper's clock) and decode steps of one policy; arrays of shape [prompts, compressions]."""

    tokens: Float64
    seconds: Float64
    steps: Float64

    @property
    def tokens_per_step(self) -> float:
        """Over all compressions."""
        return float(self.tokens.sum() / self.steps.sum())

    @property
    def tokens_per_s(self) -> Float64:
        """Shape [compressions]."""
        rates: Float64 = self.tokens.sum(axis=0) / self.seconds.sum(axis=0)
        return rates


def _scatter(records: Records, prompt: IntArray, compression: IntArray, values: Float64) -> Float64:
    out = np.zeros((len(records.prompt_tasks), len(records.compressions)))
    np.add.at(out, (prompt, compression), values)
    return out


def of_runs(records: Records, gammas: IntArray) -> Realised:
    """Sums over the logged runs of a policy that is a table of gammas, of shape [compressions, tasks]."""
    runs = records.runs
    rows = np.flatnonzero(runs.gamma == gammas[runs.compression, runs.task])
    where = runs.prompt[rows], runs.compression[rows]
    return Realised(
        tokens=_scatter(records, *where, runs.tokens[rows]),
        seconds=_scatter(records, *where, runs.seconds[rows]),
        steps=_scatter(records, *where, runs.steps[rows].astype(np.float64)),
    )


def constant(records: Records, gammas: IntArray) -> IntArray:
    """Shape [compressions, tasks]; the table of one gamma per compression, or of one for all."""
    column = np.broadcast_to(gammas, (len(records.compressions),))
    return np.repeat(column[:, np.newaxis], len(records.tasks), axis=1)


def step_seconds(records: Records) -> Float64:
    """Shape [compressions, gammas]; mean seconds of a logged step."""
    per_gamma = [of_runs(records, constant(records, gamma)) for gamma in records.gammas]
    return np.column_stack([r.seconds.sum(axis=0) / r.steps.sum(axis=0) for r in per_gamma])


def best_by_time(records: Records) -> IntArray:
    """Shape [compressions]; the gamma with the most tokens per second on all prompts."""
    rates = [of_runs(records, constant(records, gamma)).tokens_per_s for gamma in records.gammas]
    best: IntArray = records.gammas[np.argmax(rates, axis=0)]
    return best


def of_choices(records: Records, choices: IntArray) -> Realised:
    """Sums of a policy that decides at every step, over the steps logged at the largest gamma.

    Args:
        choices: Shape [steps]; index of the chosen gamma in `Records.gammas`.
    """
    steps = records.steps
    rows = np.flatnonzero(steps.gamma == records.gammas[-1])
    where = steps.prompt[rows], steps.compression[rows]
    tokens = np.minimum(steps.accepted[rows], records.gammas[choices[rows]]) + 1.0
    return Realised(
        tokens=_scatter(records, *where, tokens),
        seconds=_scatter(records, *where, step_seconds(records)[steps.compression[rows], choices[rows]]),
        steps=_scatter(records, *where, np.ones(len(rows))),
    )


def matched(records: Records, choices: IntArray) -> BoolArray:
    """Shape [steps]; where the logged gamma is the chosen one."""
    hit: BoolArray = records.steps.gamma == records.gammas[choices]
    return hit


def rate_ratio(ours: Realised, theirs: Realised, counts: Float64) -> Interval:
    """Geometric mean over compressions of tokens per second, ours over theirs, with a paired interval over prompts.

    Args:
        counts: Shape [resamples, prompts], from `resample_counts`.
    """

    def log_rates(weights: Float64, realised: Realised) -> Float64:
        rates: Float64 = np.log((weights @ realised.tokens) / (weights @ realised.seconds))
        return rates

    def ratio(weights: Float64) -> Float64:
        means: Float64 = np.exp((log_rates(weights, ours) - log_rates(weights, theirs)).mean(axis=-1))
        return means

    whole = np.ones((1, len(ours.tokens)))
    return percentile_interval(float(ratio(whole)[0]), ratio(counts))
