# SPDX-License-Identifier: Apache-2.0
"""What the runs of a study come to: each arm over the best fixed gamma, and over the arm that others are held to.

Seconds of every run, prompt and compression are read back from the runs' own evaluations on the test prompts. An
interval is a bootstrap of prompts, within tasks and shared by all arms, and of seeds, drawn anew for each arm.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agents.studies.running import Job
from speckv.errors import CheckpointError
from speckv.evaluation.baselines import BEST_FIXED
from speckv.evaluation.bootstrap import Float64, Interval, percentile_interval, resample_counts

EVALUATION = "evaluation"
NUM_RESAMPLES = 10_000
Key = tuple[str, str, str]
"""Prompt, task and compression."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTimes:
    """Decode seconds of every run on the test prompts.

    Attributes:
        tasks: Task of each prompt.
        compressions: Columns.
        best_fixed: Shape [prompts, compressions]; of the best fixed gammas.
        arms: Name -> shape [seeds, prompts, compressions].
    """

    tasks: tuple[str, ...]
    compressions: tuple[str, ...]
    best_fixed: Float64
    arms: Mapping[str, Float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmOutcome:
    """One arm.

    Attributes:
        name: Of the arm.
        over_best_fixed: Geometric mean over compressions of the speed-up over the best fixed gamma.
        by_compression: Compression -> speed-up over the best fixed gamma.
        by_seed: Geometric mean over compressions, a seed each.
        over_reference: Of the geometric mean over that of the first arm; None for the first arm itself.
    """

    name: str
    over_best_fixed: Interval
    by_compression: Mapping[str, Interval]
    by_seed: tuple[float, ...]
    over_reference: Interval | None


def read_times(jobs: Sequence[Job]) -> StudyTimes:
    """Reads the evaluations of finished runs.

    Raises:
        CheckpointError: if one is missing or damaged, or was made on other prompts or another clock than the first.
    """
    runs = {job: _read(job.folder / EVALUATION) for job in jobs}
    first, best = next(iter(runs.values()))
    keys = sorted(first)
    for job, (own, fixed) in runs.items():
        if sorted(own) != keys or fixed != best:
            raise CheckpointError(
                f"Expected {job.folder} to be evaluated on the prompts and the clock of {jobs[0].folder}, got others. "
                "Delete it and run the study again."
            )
    prompts = sorted({(prompt, task) for prompt, task, _ in keys})
    compressions = tuple(sorted({compression for _, _, compression in keys}))

    def table(seconds: Mapping[Key, float]) -> Float64:
        return np.array([[seconds.get((*prompt, c), 0.0) for c in compressions] for prompt in prompts])

    arms: dict[str, list[Float64]] = {}
    for job, (own, _) in runs.items():
        arms.setdefault(job.arm, []).append(table(own))
    return StudyTimes(
        tasks=tuple(task for _, task in prompts),
        compressions=compressions,
        best_fixed=table(best),
        arms={name: np.stack(tables) for name, tables in arms.items()},
    )


def _read(folder: Path) -> tuple[dict[Key, float], dict[Key, float]]:
    """Seconds of the run's controller, and of the best fixed gammas."""
    try:
        names = json.loads((folder / "results.json").read_text(encoding="utf-8"))["controllers"]
        with (folder / "per_prompt.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        seconds: dict[str, dict[Key, float]] = {name: {} for name in (names[0], BEST_FIXED)}
        for row in rows:
            if row["controller"] in seconds:
                seconds[row["controller"]][row["prompt_id"], row["task"], row["compression"]] = float(row["seconds"])
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"Expected a run's evaluation in {folder}, got: {error}. Run the study again.") from error
    return seconds[names[0]], seconds[BEST_FIXED]


def measure_arms(times: StudyTimes, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> tuple[ArmOutcome, ...]:
    """Estimates with their intervals, in the order of the arms.

    Args:
        times: From `read_times`.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap; the same one gives the same intervals.
    """
    counts = resample_counts(times.tasks, num_resamples, seed)
    ones = np.ones((1, len(times.tasks)))
    outcomes: list[ArmOutcome] = []
    reference: tuple[Float64, Float64] | None = None
    for number, (name, seconds) in enumerate(times.arms.items()):
        rng = np.random.default_rng([seed, number])
        num_seeds = len(seconds)
        drawn = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_resamples) / num_seeds
        exact = _ratios(times.best_fixed, seconds, ones, np.full((1, num_seeds), 1 / num_seeds))[0]
        replicates = _ratios(times.best_fixed, seconds, counts, drawn)
        mean, means = _geomean(exact), _geomean(replicates)
        over = None
        if reference is None:
            reference = mean, means
        else:
            over = percentile_interval(float(mean / reference[0]), means / reference[1])
        single = [_ratios(times.best_fixed, run[None], ones, np.ones((1, 1)))[0] for run in seconds]
        outcomes.append(
            ArmOutcome(
                name=name,
                over_best_fixed=percentile_interval(float(mean), means),
                by_compression={
                    c: percentile_interval(float(exact[k]), replicates[:, k]) for k, c in enumerate(times.compressions)
                },
                by_seed=tuple(float(_geomean(run)) for run in single),
                over_reference=over,
            )
        )
    return tuple(outcomes)


def _ratios(best_fixed: Float64, seconds: Float64, counts: Float64, seeds: Float64) -> Float64:
    """Shape [resamples, compressions]; sums of seconds of the best fixed gamma over the mean of the runs' sums."""
    sums = np.stack([counts @ run for run in seconds], axis=1)
    ratios: Float64 = (counts @ best_fixed) / np.einsum("rs,rsc->rc", seeds, sums)
    return ratios


def _geomean(ratios: Float64) -> Float64:
    mean: Float64 = np.exp(np.log(ratios).mean(axis=-1))
    return mean
