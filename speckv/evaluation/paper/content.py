# SPDX-License-Identifier: Apache-2.0
"""The study as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from speckv.evaluation.paper.published import OVERALL, POLICIES, Table
from speckv.evaluation.paper.results import ConditionResult, PolicyResult, Spread, Study
from speckv.evaluation.results import rounded


def _table(table: Table, compressions: Sequence[str]) -> dict[str, object]:
    return {
        "tokens_per_step": {
            name: {policy: rounded(float(v)) for policy, v in zip(POLICIES, row, strict=True)}
            for name, row in zip([*compressions, OVERALL], table.policies, strict=True)
        },
        "improvement": rounded(table.improvement),
        "correlation": rounded(table.correlation),
        "squared_error": rounded(table.squared_error),
        "train_records": table.num_train,
        "test_records": table.num_test,
    }


def _figures(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: rounded(value) for name, value in figures.items()}


def _spread(spread: Spread | None) -> dict[str, float | None] | None:
    return None if spread is None else _figures(asdict(spread))


def _policy(policy: PolicyResult, compressions: Sequence[str]) -> dict[str, object]:
    rates = policy.realised.tokens_per_s.tolist()
    return {
        "policy": policy.name,
        "predicted_tokens_per_step": _spread(policy.predicted),
        "realised_tokens_per_step": rounded(policy.realised.tokens_per_step),
        "tokens_per_s": _figures(dict(zip(compressions, rates, strict=True))),
        "vs_best_fixed_by_time": _figures(asdict(policy.vs_best_fixed)),
    }


def _condition(result: ConditionResult, compressions: Sequence[str]) -> dict[str, object]:
    return {
        **_policy(result.policy, compressions),
        "causal": result.condition.causal,
        "split": result.condition.split,
        "predicted_fixed_4": _spread(result.predicted_fixed),
        "correlation": _spread(result.correlation),
        "largest_gamma_share": rounded(result.largest_share),
        "matched_tokens_per_step": rounded(result.matched_tokens),
        "matched_steps": rounded(result.matched_steps),
    }


def study_json(study: Study) -> dict[str, object]:
    """The content of `results.json`; the same study gives the same bytes."""
    compressions = study.records.compressions
    return {
        "source": "SpecKV, arXiv:2605.02888; files of github.com/Amorfati123/SpecKV, results/",
        "seeds": list(study.seeds),
        "published": _table(study.published, compressions),
        "recomputed": _table(study.recomputed, compressions),
        "policies": [_policy(policy, compressions) for policy in study.policies],
        "conditions": [_condition(result, compressions) for result in study.conditions],
        "best_fixed_by_time": study.best_by_time,
        "signal_correlation": {
            "same_step": _figures(study.same_step),
            "previous_step": _figures(study.previous_step),
        },
    }


def headline(study: Study) -> dict[str, object]:
    """The few figures that a script wants."""
    ours, theirs = study.recomputed, study.published
    names = [*study.records.compressions, OVERALL]
    last = study.conditions[-1].policy
    return {
        "published": dict(zip(POLICIES, theirs.policies[names.index(OVERALL)].tolist(), strict=True)),
        "recomputed": _figures(dict(zip(POLICIES, ours.policies[names.index(OVERALL)].tolist(), strict=True))),
        "improvement": {"published": theirs.improvement, "recomputed": rounded(ours.improvement)},
        "causal_vs_best_fixed_by_time": _figures(asdict(last.vs_best_fixed)),
    }
