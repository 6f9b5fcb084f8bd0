# SPDX-License-Identifier: Apache-2.0
"""Learning curves: the evaluations of a run on its validation prompts, against the best fixed gamma on the same."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speckv.errors import CheckpointError
from speckv.evaluation.bootstrap import Interval, ratio_interval, resample_counts
from speckv.evaluation.metrics import ALL, Grid, Sums

EVAL = "eval.csv"
"""File of a run folder with one row per validation prompt, compression and evaluation."""
_NEEDED = ("step", "prompt_id", "compression", "seconds", "steps", "drafted")

_Pairs = dict[tuple[str, str], tuple[float, ...]]
"""Prompt and compression -> seconds, decode steps and drafted tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One evaluation after `step` environment steps; "all" is the geometric mean over compressions."""

    step: int
    over_best_fixed: Mapping[str, Interval]
    drafted_per_step: float

    @property
    def mean(self) -> float:
        """Geometric mean over compressions of the speed-up, by which the best checkpoint is chosen."""
        return self.over_best_fixed[ALL].estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Evaluations of a run in the order of the steps, and the number of validation prompts."""

    num_prompts: int
    points: tuple[Point, ...]


def read_curve(
    path: Path, grid: Grid, best_fixed: Sums, *, part: bool = False, num_resamples: int = 0, seed: int = 0
) -> Curve:
    """Reads a run's `eval.csv`, also while the run writes it: an incomplete evaluation is left out.

    Args:
        best_fixed: Of the same grid, with the cost table of the file.
        part: Whether the grid holds more than the validation prompts, which are then those of the first evaluation.
        num_resamples: 0 for intervals without bounds.

    Raises:
        CheckpointError: if the file is missing, damaged or of other prompts.
    """
    evaluations = _read(path)
    recorded = zip(grid.rows.tolist(), grid.columns.tolist(), strict=True)
    known = {(grid.prompt_ids[row], grid.compressions[column]): (row, column) for row, column in recorded}
    if strange := {pair for pairs in evaluations.values() for pair in pairs} - known.keys():
        raise CheckpointError(
            f"{path}: expected prompts of the train split on this run's recordings, got {min(strange)}. Train again."
        )
    expected = sorted(evaluations[min(evaluations)]) if part and evaluations else list(known)
    places = np.array([known[pair] for pair in expected], np.int64).reshape(-1, 2)
    prompts, rows = np.unique(places[:, 0], return_inverse=True)
    columns, place = np.unique(places[:, 1], return_inverse=True)
    fixed = np.zeros((len(prompts), len(columns)))
    fixed[rows, place] = best_fixed.seconds[places[:, 0], places[:, 1]]
    tasks = [grid.tasks[row] for row in prompts]
    counts = resample_counts(tasks, num_resamples, seed) if num_resamples else np.zeros((0, len(prompts)))
    names = [grid.compressions[column] for column in columns]
    points = []
    for step, pairs in sorted(evaluations.items()):
        if not set(expected) <= pairs.keys():
            continue
        values = np.array([pairs[pair] for pair in expected])
        ours = np.zeros_like(fixed)
        ours[rows, place] = values[:, 0]
        _, steps, drafted = values.sum(axis=0)
        over = {name: ratio_interval(fixed[:, k], ours[:, k], counts) for k, name in enumerate(names)}
        over[ALL] = ratio_interval(fixed, ours, counts)
        points.append(Point(step=step, over_best_fixed=over, drafted_per_step=float(drafted / steps)))
    return Curve(num_prompts=len(prompts), points=tuple(points))


def _whole_rows(content: bytes) -> bytes:
    # A last row may still be being written.
    end = content.rfind(b"\n")
    while content.count(b'"', 0, max(end, 0)) % 2:  # this line end is inside a prompt's id
        end = content.rfind(b"\n", 0, end)
    return content[: end + 1]


def _read(path: Path) -> dict[int, _Pairs]:
    try:
        text = _whole_rows(path.read_bytes()).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"Expected a run's evaluations at {path}, got: {error}. Train again.") from error
    found: dict[int, _Pairs] = {}
    if not text:
        return found
    # A prompt's id may hold line ends, so rows are found by the CSV reader.
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if missing := set(_NEEDED) - set(reader.fieldnames or ()):
        raise CheckpointError(f"{path}: expected columns {sorted(missing)} as well. Train again.")
    try:
        for row in reader:
            values = tuple(float(row[name]) for name in ("seconds", "steps", "drafted"))
            found.setdefault(int(row["step"]), {})[row["prompt_id"], row["compression"]] = values
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: expected numbers, got {error}. Train again.") from error
    return found
