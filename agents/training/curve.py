# SPDX-License-Identifier: Apache-2.0
"""How a run did on validation prompts over its course, read back from its rows."""

import csv
import math
from collections import defaultdict
from pathlib import Path

import numpy as np

from agents.training.validation import Validator


def curve_of(path: Path, validator: Validator) -> list[dict[str, float]]:
    """Validation figures by environment step; a last row that is only half written is left out.

    Args:
        path: The run's `eval.csv`.
        validator: Of the same prompts and clock.
    """
    sums: dict[int, dict[str, np.ndarray]] = defaultdict(lambda: defaultdict(lambda: np.zeros(4)))
    rows: dict[int, int] = defaultdict(int)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                values = [float(row[key]) for key in ("tokens", "seconds", "steps", "drafted")]
            except (TypeError, ValueError, KeyError):
                continue
            sums[int(row["step"])][row["compression"]] += values
            rows[int(row["step"])] += 1
    best_s = dict(zip(validator.grid.compressions, validator.best_fixed.seconds.sum(axis=0).tolist(), strict=True))
    curve = []
    for step, by_compression in sorted(sums.items()):
        if rows[step] < len(validator.grid.rows):
            continue
        ratios = {name: best_s[name] / float(total[1]) for name, total in by_compression.items()}
        _, _, steps, drafted = np.sum(list(by_compression.values()), axis=0)
        mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
        point = {"step": float(step), "vs_best_fixed": mean, "drafted_per_step": float(drafted / steps)}
        curve.append(point | {f"vs_best_fixed_{name}": ratio for name, ratio in ratios.items()})
    return curve
