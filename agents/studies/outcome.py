# SPDX-License-Identifier: Apache-2.0
"""What the runs of a study come to: each arm over the best fixed gamma, and over the arm that others are held to.

Seconds of every run, prompt and compression are read back from the runs' own evaluations on the test prompts.
Intervals are a bootstrap of prompts and seeds (`speckv.evaluation.entrants`), claims are sign-flip tests with Holm's
control over the study's arms (`speckv.evaluation.significance`).
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agents.runs.run_folder import EVALUATION
from agents.studies.running import Job
from speckv.errors import CheckpointError
from speckv.evaluation.bootstrap import Float64, Interval, resample_counts
from speckv.evaluation.compare import NUM_RESAMPLES
from speckv.evaluation.entrants import Entrant, measure_entrant, run_generator, speedup_over
from speckv.evaluation.metrics import ALL, Grid, Group, References, Sums, groups_of
from speckv.evaluation.replays import AUTOREGRESSIVE, BEST_FIXED, CLAIRVOYANT
from speckv.evaluation.report import PER_PROMPT, RESULTS
from speckv.evaluation.significance import PairedComparison, family_against

_COUNTS = ("tokens", "seconds", "steps", "drafted", "accepted", "tested")
_BASELINES = (AUTOREGRESSIVE, BEST_FIXED, CLAIRVOYANT)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySums:
    """What every run summed up to on the test prompts.

    Attributes:
        grid: Prompts and compressions.
        references: Baselines and bound, the same for all runs.
        arms: Name -> a run a seed.
    """

    grid: Grid
    references: References
    arms: Mapping[str, tuple[Sums, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmOutcome:
    """One arm.

    Attributes:
        name: Of the arm.
        over_best_fixed: Geometric mean over compressions of the speed-up over the best fixed gamma.
        by_compression: Compression -> speed-up over the best fixed gamma.
        by_seed: Geometric mean over compressions, a seed each.
        over_reference: The same mean over that of the first arm; None for the first arm itself.
        verdict: Whether it is ahead of the first arm or behind; None for the first arm itself.
    """

    name: str
    over_best_fixed: Interval
    by_compression: Mapping[str, Interval]
    by_seed: tuple[float, ...]
    over_reference: Interval | None
    verdict: PairedComparison | None


def read_sums(jobs: Sequence[Job]) -> StudySums:
    """Reads the evaluations of finished runs.

    Raises:
        CheckpointError: if one is missing or damaged, or was made on other prompts or another clock than the first.
    """
    runs = {job: _Evaluation(job.folder / EVALUATION) for job in jobs}
    first = runs[jobs[0]]
    arms: dict[str, list[Sums]] = {}
    for job, run in runs.items():
        if run.keys != first.keys or run.sums[BEST_FIXED] != first.sums[BEST_FIXED]:
            raise CheckpointError(
                f"Expected {job.folder} to be evaluated on the prompts and the clock of {jobs[0].folder}, got others. "
                "Delete it and run the study again."
            )
        arms.setdefault(job.arm, []).append(run.table(first.grid, run.controller))
    plain, best, bound = (first.table(first.grid, name) for name in _BASELINES)
    return StudySums(
        grid=first.grid,
        references=References(autoregressive=plain, best_fixed=best, clairvoyant=bound),
        arms={name: tuple(tables) for name, tables in arms.items()},
    )


class _Evaluation:
    """One run's evaluation as it lies on the disk."""

    def __init__(self, folder: Path) -> None:
        try:
            content = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
            self.controller = str(content["controllers"][0])
            self.sums: dict[str, dict[tuple[str, ...], list[float]]] = {n: {} for n in (self.controller, *_BASELINES)}
            with (folder / PER_PROMPT).open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    if row["controller"] in self.sums:
                        key = row["prompt_id"], row["task"], row["compression"]
                        self.sums[row["controller"]][key] = [float(row[name]) for name in _COUNTS]
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise CheckpointError(
                f"Expected a run's evaluation in {folder}, got: {error}. Run the study again."
            ) from error
        self.keys = sorted(self.sums[BEST_FIXED])

    @property
    def grid(self) -> Grid:
        """Prompts and compressions."""
        prompts = sorted({(prompt, task) for prompt, task, _ in self.keys})
        compressions = tuple(sorted({compression for *_, compression in self.keys}))
        return Grid(
            prompt_ids=tuple(prompt for prompt, _ in prompts),
            tasks=tuple(task for _, task in prompts),
            compressions=compressions,
            rows=np.array([prompts.index((prompt, task)) for prompt, task, _ in self.keys], np.int64),
            columns=np.array([compressions.index(compression) for *_, compression in self.keys], np.int64),
        )

    def table(self, grid: Grid, controller: str) -> Sums:
        """One controller's sums; how often it chose each gamma is not on the disk by prompt, and is left out."""
        values = np.zeros((len(_COUNTS), len(grid.prompt_ids), len(grid.compressions)))
        for key, row, column in zip(self.keys, grid.rows, grid.columns, strict=True):
            values[:, row, column] = self.sums[controller][key]
        unknown = np.zeros((*values.shape[1:], 1))
        unknown[grid.rows, grid.columns] = 1.0
        return Sums(name=controller, gammas=unknown, **dict(zip(_COUNTS, values, strict=True)))


def measure_arms(sums: StudySums, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> tuple[ArmOutcome, ...]:
    """Estimates with their intervals and claims, in the order of the arms.

    Args:
        sums: From `read_sums`.
        num_resamples: Of bootstrap and sign flips.
        seed: Of both; the same one gives the same outcomes.
    """
    counts = resample_counts(sums.grid.tasks, num_resamples, seed)
    rng = run_generator(seed)
    entrants = [Entrant.drawn(name, runs, num_resamples=num_resamples, rng=rng) for name, runs in sums.arms.items()]
    groups = {g.compression: g for g in groups_of(sums.grid, sums.references.best_fixed.tokens) if g.task == ALL}
    whole = groups[ALL]
    first, *others = entrants
    verdicts: dict[str, PairedComparison] = {}
    if others:
        family = family_against(first, others, whole, question="first arm", num_resamples=num_resamples, seed=seed)
        verdicts = {verdict.controller: verdict for verdict in family.verdicts}
    return tuple(_outcome(entrant, first, groups, sums.references, counts, verdicts) for entrant in entrants)


def _outcome(
    entrant: Entrant,
    first: Entrant,
    groups: Mapping[str, Group],
    references: References,
    counts: Float64,
    verdicts: Mapping[str, PairedComparison],
) -> ArmOutcome:
    rows = {name: measure_entrant(entrant, group, references, counts) for name, group in groups.items()}
    best = groups[ALL].take(references.best_fixed.seconds).sum(axis=0)
    by_seed = [np.log(best / groups[ALL].take(run.seconds).sum(axis=0)).mean() for run in entrant.runs]
    return ArmOutcome(
        name=entrant.name,
        over_best_fixed=rows[ALL].geomean_vs_best_fixed,
        by_compression={name: row.speedup_vs_best_fixed for name, row in rows.items() if name != ALL},
        by_seed=tuple(float(np.exp(value)) for value in by_seed),
        over_reference=None if entrant is first else speedup_over(entrant, first, groups[ALL], counts),
        verdict=verdicts.get(entrant.name),
    )
