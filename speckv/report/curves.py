# SPDX-License-Identifier: Apache-2.0
"""How a run got better: its validation prompts, evaluation by evaluation, against the best fixed gamma on the same."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speckv.errors import CheckpointError
from speckv.evaluation.baselines import FixedSweep
from speckv.evaluation.bootstrap import (
    Float64,
    Interval,
    geometric_mean_ratio_interval,
    ratio_interval,
    resample_counts,
)
from speckv.evaluation.metrics import ALL

EVAL = "eval.csv"
_NEEDED = ("step", "prompt_id", "compression", "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One evaluation.

    Attributes:
        step: Environment steps until then.
        over_best_fixed: Compression, or "all" for the geometric mean over them -> speed-up over the best fixed gamma.
    """

    step: int
    over_best_fixed: Mapping[str, Interval]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What a run's evaluations say.

    Attributes:
        controller: Its name on the page.
        num_prompts: Validation prompts.
        points: In the order of the steps.
    """

    controller: str
    num_prompts: int
    points: tuple[Point, ...]


def read_curve(folder: Path, controller: str, sweep: FixedSweep, *, num_resamples: int, seed: int) -> Curve | None:
    """Reads a run's evaluations.

    Args:
        folder: Of the run.
        controller: Its name on the page.
        sweep: Every fixed gamma on the train prompts, of which the validation prompts are some.
        num_resamples: Of the bootstrap behind the intervals.
        seed: Of the bootstrap.

    Returns:
        The curve, or None where the run was evaluated once at most: it does not learn step by step.

    Raises:
        CheckpointError: if the file is damaged or about other prompts.
    """
    path = folder / EVAL
    if not path.is_file():
        return None
    evaluations = _read(path)
    if len(evaluations) < 2:
        return None
    grid = sweep.grid
    row_of = {name: row for row, name in enumerate(grid.prompt_ids)}
    column_of = {name: column for column, name in enumerate(grid.compressions)}
    seconds = np.zeros((len(evaluations), len(grid.prompt_ids), len(grid.compressions)))
    try:
        for number, step in enumerate(sorted(evaluations)):
            for prompt, compression, value in evaluations[step]:
                seconds[number, row_of[prompt], column_of[compression]] = value
    except KeyError as error:
        raise CheckpointError(f"{path}: expected prompts of the train split, got {error}. Train again.") from error
    rows = np.flatnonzero(seconds[0].any(axis=1))
    fixed = sweep.combine(sweep.best()).seconds[rows]
    counts = resample_counts([grid.tasks[row] for row in rows], num_resamples, seed)
    points = tuple(
        Point(step=step, over_best_fixed=_speedups(fixed, ours[rows], counts, grid.compressions))
        for step, ours in zip(sorted(evaluations), seconds, strict=True)
    )
    return Curve(controller=controller, num_prompts=len(rows), points=points)


def _speedups(fixed: Float64, ours: Float64, counts: Float64, compressions: Sequence[str]) -> dict[str, Interval]:
    columns = np.flatnonzero(ours.any(axis=0)).tolist()
    found = {compressions[c]: ratio_interval(fixed[:, c], ours[:, c], counts) for c in columns}
    return found | {ALL: geometric_mean_ratio_interval(fixed[:, columns], ours[:, columns], counts)}


def _read(path: Path) -> dict[int, list[tuple[str, str, float]]]:
    found: dict[int, list[tuple[str, str, float]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := set(_NEEDED) - set(reader.fieldnames or ()):
            raise CheckpointError(f"{path}: expected columns {sorted(missing)} as well. Train again.")
        try:
            for row in reader:
                found.setdefault(int(row["step"]), []).append(
                    (row["prompt_id"], row["compression"], float(row["seconds"]))
                )
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: expected numbers, got {error}. Train again.") from error
    return found
