# SPDX-License-Identifier: Apache-2.0
"""The comparison as JSON and CSV; the same comparison gives the same bytes."""

from collections.abc import Sequence
from dataclasses import asdict

from speckv.evaluation.bootstrap import Float64, Interval
from speckv.evaluation.compare import Comparison, GroupResult
from speckv.evaluation.entrants import TAUS, ControllerMetrics, Profile
from speckv.evaluation.metrics import ALL, Sums
from speckv.evaluation.significance import LEVEL, Family
from speckv.files import csv_text

RESULTS_VERSION = 1
"""Version of the keys: keys may be added, but none moves or changes its meaning."""
PROFILE_STRIDE = 10
"""Every tenth tau of a profile is stored: 0.05 apart."""
PER_PROMPT_COLUMNS = (
    *("controller", "prompt_id", "task", "compression"),
    *("tokens", "seconds", "steps", "drafted", "accepted", "tested"),
)


def rounded(value: float | None) -> float | None:
    """Rounds to six significant digits, so that rounding differences between processors do not change the file.

    >>> rounded(1.23456789), rounded(None)
    (1.23457, None)
    """
    return None if value is None else float(f"{value:.6g}")


def interval_json(interval: Interval) -> dict[str, float | None]:
    """An interval as JSON, rounded."""
    return {"estimate": rounded(interval.estimate), "low": rounded(interval.low), "high": rounded(interval.high)}


def _row(row: ControllerMetrics) -> dict[str, object]:
    together = {} if row.seeds_iqm is None else {"seeds_iqm_speedup_vs_best_fixed": interval_json(row.seeds_iqm)}
    return together | {
        "controller": row.controller,
        "throughput_tokens_per_s": rounded(row.throughput),
        "speedup_vs_ar": interval_json(row.speedup_vs_ar),
        "speedup_vs_best_fixed": interval_json(row.speedup_vs_best_fixed),
        "geomean_speedup_vs_ar": interval_json(row.geomean_vs_ar),
        "geomean_speedup_vs_best_fixed": interval_json(row.geomean_vs_best_fixed),
        "tokens_per_step": rounded(row.tokens_per_step),
        "drafted_per_token": rounded(row.drafted_per_token),
        "acceptance_rate": rounded(row.acceptance_rate),
        "mean_gamma": rounded(row.mean_gamma),
        "headroom_share": rounded(row.headroom_share),
    }


def _group(result: GroupResult) -> dict[str, object]:
    return {
        "compression": result.group.compression,
        "task": result.group.task,
        "num_prompts": len(result.group.prompts),
        "rows": [_row(row) for row in result.rows],
    }


def _length(result: GroupResult) -> dict[str, object]:
    bucket = result.bucket
    assert bucket is not None
    tokens = {
        "shortest_prompt": bucket.shortest,
        "longest_prompt": bucket.longest,
        "longest_context": bucket.longest_context,
    }
    return {"tokens": tokens, **_group(result)}


def _family(family: Family) -> dict[str, object]:
    verdicts = [
        {
            "controller": v.controller,
            "speedup": rounded(v.speedup),
            "p_value": rounded(v.p_value),
            "p_holm": rounded(v.p_holm),
            "verdict": v.outcome,
        }
        for v in family.pairs
    ]
    return {
        "question": family.question,
        "compression": family.compression,
        "against": family.against,
        "num_comparisons": family.num_comparisons,
        "num_sign_flips": family.num_flips,
        "verdicts": verdicts,
    }


def _profile(profile: Profile) -> dict[str, object]:
    def listed(values: Float64 | None) -> list[float | None] | None:
        return None if values is None else [rounded(v) for v in values[::PROFILE_STRIDE].tolist()]

    return {
        "controller": profile.controller,
        "compression": profile.compression,
        "shares": listed(profile.shares),
        "low": listed(profile.low),
        "high": listed(profile.high),
    }


def _histogram(sums: Sums, compressions: tuple[str, ...]) -> dict[str, list[int]]:
    counts = sums.gammas.sum(axis=0)
    return {name: [int(n) for n in counts[column]] for column, name in enumerate(compressions)}


def comparison_json(comparison: Comparison) -> dict[str, object]:
    """The content of `results.json`: everything but measured decision times."""
    setting = {k: rounded(v) if isinstance(v, float) else v for k, v in asdict(comparison.setting).items()}
    setting["cost_ratio"] = {name: rounded(ratio) for name, ratio in comparison.setting.cost_ratio.items()}
    return {
        "results_version": RESULTS_VERSION,
        "setting": setting,
        "best_fixed_gammas": comparison.best_fixed_gammas,
        "controllers": list(comparison.controllers),
        "entrants": list(comparison.entrants),
        "seed_groups": {group.name: list(group.members) for group in comparison.seed_groups},
        "groups": [_group(result) for result in comparison.groups],
        "gamma_histograms": {s.name: _histogram(s, comparison.grid.compressions) for s in comparison.sums},
        "prompt_lengths": [_length(result) for result in comparison.lengths],
        "significance": {
            "test": "paired sign flips over prompts, two-sided",
            "adjustment": "Holm",
            "level": LEVEL,
            "families": [_family(family) for family in comparison.families],
        },
        "performance_profiles": {
            "speedups": list(TAUS[::PROFILE_STRIDE]),
            "profiles": [_profile(profile) for profile in comparison.profiles],
        },
    }


def headline(comparison: Comparison) -> dict[str, object]:
    """A short object for scripts: x best fixed and tokens a second of each controller; "all" is the geometric mean."""
    names = dict.fromkeys((*comparison.entrants, *comparison.controllers))
    groups = [r for r in comparison.groups if r.group.task == ALL]
    return {
        "cost": comparison.setting.cost,
        "test_prompts": comparison.setting.test_prompts,
        "best_fixed_gammas": comparison.best_fixed_gammas,
        "x_best_fixed": {
            name: {r.group.compression: interval_json(r.row(name).geomean_vs_best_fixed) for r in groups}
            for name in names
        },
        "throughput_tokens_per_s": {
            name: {r.group.compression: rounded(r.row(name).throughput) for r in groups} for name in names
        },
    }


def per_prompt_csv(comparison: Comparison) -> str:
    """One line per controller, prompt and compression, as a later paired test needs."""
    rows: list[Sequence[object]] = [PER_PROMPT_COLUMNS]
    grid = comparison.grid
    for sums in comparison.sums:
        for row, (prompt, task) in enumerate(zip(grid.prompt_ids, grid.tasks, strict=True)):
            for column, compression in enumerate(grid.compressions):
                if sums.steps[row, column]:
                    counts = (sums.steps, sums.drafted, sums.accepted, sums.tested)
                    rows.append(
                        [sums.name, prompt, task, compression]
                        + [int(sums.tokens[row, column]), f"{sums.seconds[row, column]:.9g}"]
                        + [int(c[row, column]) for c in counts]
                    )
    return csv_text(rows)
