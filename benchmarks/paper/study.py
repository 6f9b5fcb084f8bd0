# SPDX-License-Identifier: Apache-2.0
"""The whole study: the paper's table recomputed, and what its policies realise under increasingly fair conditions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.paper.policies import (
    Realised,
    best_by_time,
    best_by_tokens,
    constant,
    credited_tokens,
    expected_tokens,
    logged_rates,
    matched,
    of_choices,
    of_runs,
    predicted_rates,
    predictor_inputs,
    rate_ratio,
    recompute,
    strata,
)
from benchmarks.paper.predictor import Float64, fit_regressor, folds, train_test_pairs
from benchmarks.paper.released import POLICIES, SIGNALS, PaperTable, Records, read_published, read_records
from speckv.evaluation.bootstrap import Interval, resample_counts
from speckv.types import IntArray

PUBLISHED_SEED = 42
"""The paper's `random_state` for split and network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """How a predictor is fitted and what its inputs are.

    Attributes:
        causal: Whether its inputs are the signals of the previous step, instead of the step itself.
        split: "none" fits it to the tested steps too; "steps" and "prompts" test it on held-out steps or prompts.
    """

    name: str
    causal: bool
    split: str


CONDITIONS = (
    Condition(name="SpecKV-fast, as published", causal=False, split="none"),
    Condition(name="SpecKV-fast, other steps", causal=False, split="steps"),
    Condition(name="SpecKV-fast, other prompts", causal=False, split="prompts"),
    Condition(name="SpecKV-fast, causal, other prompts", causal=True, split="prompts"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean and range of a figure over seeds."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """Mean, minimum and maximum."""
        return Spread(mean=float(np.mean(values)), low=float(np.min(values)), high=float(np.max(values)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyResult:
    """Figures of one policy.

    Attributes:
        predicted: Tokens per step that the predictor credits it with.
        vs_best_fixed: Tokens per second over those of the constant that is best by time, geometric mean.
    """

    name: str
    predicted: Spread | None
    realised: Realised
    vs_best_fixed: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionResult:
    """SpecKV-fast under one condition, over the seeds.

    Attributes:
        predicted_fixed: Tokens per step that the same predictor credits Fixed-4 with.
        correlation: Of predicted and logged acceptance rates in tested steps after the first of a run; None if the
            predictor was fitted to them.
        largest_share: Share of steps in which it chooses the largest gamma.
        matched_tokens: Tokens per step where the logged gamma is the chosen one.
        matched_steps: Mean number of such steps.
    """

    condition: Condition
    policy: PolicyResult
    predicted_fixed: Spread
    correlation: Spread | None
    largest_share: float
    matched_tokens: float
    matched_steps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperStudy:
    """All results.

    Attributes:
        seeds: Of splits and networks; the first is the paper's.
        recomputed: The published figures recomputed with the paper's seed.
        policies: Constants and tables of gammas.
        conditions: SpecKV-fast.
        best_by_time: Compression -> gamma with the most tokens per second.
        same_step: Signal -> its correlation with the acceptance rate of the same step.
        previous_step: Signal of the previous step -> the same correlation.
    """

    records: Records
    seeds: tuple[int, ...]
    published: PaperTable
    recomputed: PaperTable
    policies: tuple[PolicyResult, ...]
    conditions: tuple[ConditionResult, ...]
    best_by_time: dict[str, int]
    same_step: dict[str, float]
    previous_step: dict[str, float]


def run_study(folder: Path, *, num_seeds: int, num_resamples: int, seed: int) -> PaperStudy:
    """Runs the study.

    Args:
        folder: The paper's result files.
        num_seeds: Splits and networks to average over: seeds from the paper's own upwards.
        num_resamples: Of the bootstrap over prompts.
        seed: Of the bootstrap.

    Raises:
        DataError: if a file is missing or damaged.
    """
    records = read_records(folder)
    published = read_published(folder, records)
    seeds = tuple(range(PUBLISHED_SEED, PUBLISHED_SEED + num_seeds))
    repeated = [recompute(records, s) for s in seeds]
    counts = resample_counts([records.tasks[t] for t in records.prompt_tasks], num_resamples, seed)
    best_gammas = best_by_time(records)
    reference = of_runs(records, constant(records, best_gammas))
    results = []
    for condition in CONDITIONS:
        if condition.split == "none":
            rates, tables = [r for _, r in repeated], [t.policies[-1] for t, _ in repeated]
        else:
            rates = [_tested_rates(records, condition, s) for s in seeds]
            tables = [credited_tokens(records, expected_tokens(r, records.gammas)).mean(axis=0) for r in rates]
        results.append(_evaluate(records, condition, rates, tables, reference, counts))
    return PaperStudy(
        records=records,
        seeds=seeds,
        published=published,
        recomputed=repeated[0][0],
        policies=_tables(records, [t.policies[-1] for t, _ in repeated], reference, counts),
        conditions=tuple(results),
        best_by_time=dict(zip(records.compressions, best_gammas.tolist(), strict=True)),
        same_step=_correlations(records, causal=False),
        previous_step=_correlations(records, causal=True),
    )


def _tested_rates(records: Records, condition: Condition, seed: int) -> Float64:
    """Shape [steps, gammas]; each step is predicted by a network that was not fitted to it."""
    steps, inputs = records.steps, predictor_inputs(records, causal=condition.causal)
    if condition.split == "steps":
        _, codes = np.unique(strata(records), return_inverse=True)
        fold = folds(codes, seed)
    else:
        fold = folds(records.prompt_tasks, seed)[steps.prompt]
    rates = np.zeros((len(inputs), len(records.gammas)))
    for train, test in train_test_pairs(fold):
        model = fit_regressor(inputs[train], steps.acceptance_rate[train], seed)
        rates[test] = predicted_rates(model, inputs[test], records.gammas)
    return rates


def _evaluate(
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
