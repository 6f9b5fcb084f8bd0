# SPDX-License-Identifier: Apache-2.0
"""The whole study: the paper's table again, and its policies by what they realise under ever fairer conditions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speckv.evaluation.bootstrap import resample_counts
from speckv.evaluation.paper.policies import (
    best_by_tokens,
    expected_tokens,
    logged_rates,
    predicted_rates,
    predictor_inputs,
    recompute,
    self_scores,
    strata,
)
from speckv.evaluation.paper.published import POLICIES, read_published
from speckv.evaluation.paper.realised import Realised, best_by_time, constant, matched, of_choices, of_runs, rate_ratio
from speckv.evaluation.paper.records import SIGNALS, Records, read_records
from speckv.evaluation.paper.regressor import fit_regressor
from speckv.evaluation.paper.results import CONDITIONS, Condition, ConditionResult, PolicyResult, Spread, Study
from speckv.evaluation.paper.splits import folds, pairs_of
from speckv.types import IntArray

Float64 = NDArray[np.float64]

PUBLISHED_SEED = 42
"""The paper's `random_state`, of split and network."""


def run_study(folder: Path, *, num_seeds: int, num_resamples: int, seed: int) -> Study:
    """Runs it.

    Args:
        folder: Of the paper's result files.
        num_seeds: Splits and networks to average over, the paper's own and those that follow it.
        num_resamples: Of the bootstrap over prompts.
        seed: Of the bootstrap.

    Raises:
        DataError: if a file is missing or damaged.
    """
    records = read_records(folder)
    published = read_published(folder, records)
    seeds = tuple(range(PUBLISHED_SEED, PUBLISHED_SEED + num_seeds))
    again = [recompute(records, s) for s in seeds]
    counts = resample_counts([records.tasks[t] for t in records.prompt_tasks], num_resamples, seed)
    fastest = best_by_time(records)
    reference = of_runs(records, constant(records, fastest))
    results = []
    for condition in CONDITIONS:
        if condition.split == "none":
            rates, tables = [r for _, r in again], [t.policies[-1] for t, _ in again]
        else:
            rates = [_tested_rates(records, condition, s) for s in seeds]
            tables = [self_scores(records, expected_tokens(r, records.gammas)).mean(axis=0) for r in rates]
        results.append(_judge(records, condition, rates, tables, reference, counts))
    return Study(
        records=records,
        seeds=seeds,
        published=published,
        recomputed=again[0][0],
        policies=_tables(records, [t.policies[-1] for t, _ in again], reference, counts),
        conditions=tuple(results),
        best_by_time=dict(zip(records.compressions, fastest.tolist(), strict=True)),
        same_step=_correlations(records, causal=False),
        previous_step=_correlations(records, causal=True),
    )


def _tested_rates(records: Records, condition: Condition, seed: int) -> Float64:
    """Shape [steps, gammas]; every step is predicted by a network that did not see it."""
    steps, inputs = records.steps, predictor_inputs(records, causal=condition.causal)
    if condition.split == "steps":
        _, codes = np.unique(strata(records), return_inverse=True)
        fold = folds(codes, seed)
    else:
        fold = folds(records.prompt_tasks, seed)[steps.prompt]
    rates = np.zeros((len(inputs), len(records.gammas)))
    for train, test in pairs_of(fold):
        model = fit_regressor(inputs[train], steps.acceptance_rate[train], seed)
        rates[test] = predicted_rates(model, inputs[test], records.gammas)
    return rates


def _judge(
    records: Records,
    condition: Condition,
    rates: Sequence[Float64],
    tables: Sequence[Float64],
    reference: Realised,
    counts: Float64,
) -> ConditionResult:
    choices: list[IntArray] = [expected_tokens(r, records.gammas).argmax(axis=1) for r in rates]
    each = [of_choices(records, choice) for choice in choices]
    realised = Realised(
        tokens=np.sum([r.tokens for r in each], axis=0),
        seconds=np.sum([r.seconds for r in each], axis=0),
        steps=np.sum([r.steps for r in each], axis=0),
    )
    hits = [matched(records, choice) for choice in choices]
    later, truth = ~records.steps.is_first, records.steps.acceptance_rate
    logged = [np.corrcoef(logged_rates(records, r)[later], truth[later])[0, 1] for r in rates]
    emitted = records.steps.accepted + 1
    return ConditionResult(
        condition=condition,
        policy=PolicyResult(
            name=condition.name,
            predicted=Spread.of([t[POLICIES.index("SpecKV-fast")] for t in tables]),
            realised=realised,
            vs_best_fixed=rate_ratio(realised, reference, counts),
        ),
        predicted_fixed=Spread.of([t[POLICIES.index("Fixed-4")] for t in tables]),
        correlation=None if condition.split == "none" else Spread.of(logged),
        largest_share=float(np.mean([c == len(records.gammas) - 1 for c in choices])),
        matched_tokens=float(sum(emitted[h].sum() for h in hits) / sum(h.sum() for h in hits)),
        matched_steps=float(np.mean([h.sum() for h in hits])),
    )


def _tables(
    records: Records, scores: Sequence[Float64], reference: Realised, counts: Float64
) -> tuple[PolicyResult, ...]:
    by_tokens = records.gammas[best_by_tokens(records)]
    tables: dict[str, IntArray] = {f"Fixed-{g}": constant(records, g) for g in records.gammas}
    tables["Fixed-best, by tokens a step"] = constant(records, by_tokens)
    tables["Fixed-best, by tokens a second"] = constant(records, best_by_time(records))
    tables["Task-oracle"] = records.oracle
    credited = {"Fixed-4": 0, "Fixed-best, by tokens a step": 1, "Task-oracle": 2}
    out = []
    for name, gammas in tables.items():
        realised = of_runs(records, gammas)
        predicted = Spread.of([s[credited[name]] for s in scores]) if name in credited else None
        ratio = rate_ratio(realised, reference, counts)
        out.append(PolicyResult(name=name, predicted=predicted, realised=realised, vs_best_fixed=ratio))
    return tuple(out)


def _correlations(records: Records, *, causal: bool) -> dict[str, float]:
    later, truth = ~records.steps.is_first, records.steps.acceptance_rate
    signals = predictor_inputs(records, causal=causal)[later]
    return {name: float(np.corrcoef(signals[:, k], truth[later])[0, 1]) for k, name in enumerate(SIGNALS)}
