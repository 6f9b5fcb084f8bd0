# SPDX-License-Identifier: Apache-2.0
"""What policies realise, in tokens and seconds, as far as the paper's log can tell.

- A constant, and any policy that is constant for a compression and task, was run: tokens and seconds of those runs.
- SpecKV was never run. In the steps logged at the largest gamma the outcome of every smaller one is known as well, for
  a shorter draft is the beginning of the longer: min(accepted, gamma) + 1 tokens. It is charged the mean seconds that a
  step of its compression and gamma took. The states are those that a constant largest gamma meets, which are SpecKV's
  own as far as it chooses the largest.
- As a check, the steps in which the logged gamma happens to be the chosen one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speckv.evaluation.bootstrap import Interval, percentile_interval
from speckv.evaluation.paper.records import Records
from speckv.types import BoolArray, IntArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Realised:
    """Sums of one policy; arrays of shape [prompts, compressions].

    Attributes:
        tokens: Emitted.
        seconds: On the paper's clock.
        steps: Decode steps they took.
    """

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
    """What was measured where a policy is a table.

    Args:
        records: The log.
        gammas: Shape [compressions, tasks]; gamma of each.
    """
    runs = records.runs
    rows = np.flatnonzero(runs.gamma == gammas[runs.compression, runs.task])
    where = runs.prompt[rows], runs.compression[rows]
    return Realised(
        tokens=_scatter(records, *where, runs.tokens[rows]),
        seconds=_scatter(records, *where, runs.seconds[rows]),
        steps=_scatter(records, *where, runs.steps[rows].astype(np.float64)),
    )


def constant(records: Records, gammas: IntArray) -> IntArray:
    """Shape [compressions, tasks]; a gamma for each compression, of shape [compressions] or one for all, as a table."""
    column = np.broadcast_to(gammas, (len(records.compressions),))
    return np.repeat(column[:, np.newaxis], len(records.tasks), axis=1)


def step_seconds(records: Records) -> Float64:
    """Shape [compressions, gammas]; mean seconds of a step, as logged."""
    per_gamma = [of_runs(records, constant(records, gamma)) for gamma in records.gammas]
    return np.column_stack([r.seconds.sum(axis=0) / r.steps.sum(axis=0) for r in per_gamma])


def best_by_time(records: Records) -> IntArray:
    """Shape [compressions]; the gamma of most tokens a second, on all prompts."""
    rates = [of_runs(records, constant(records, gamma)).tokens_per_s for gamma in records.gammas]
    best: IntArray = records.gammas[np.argmax(rates, axis=0)]
    return best


def of_choices(records: Records, choices: IntArray) -> Realised:
    """What a policy that decides step by step would have come to, in the steps logged at the largest gamma.

    Args:
        records: The log.
        choices: Shape [steps]; place of the chosen gamma among `Records.gammas`.
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
    """Geometric mean over compressions of tokens a second, ours over theirs, with a paired interval over prompts.

    Args:
        ours: The policy.
        theirs: What it is measured against.
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
