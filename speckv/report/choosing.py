# SPDX-License-Identifier: Apache-2.0
"""Which prompts a reader can step through: ordinary ones, by a rule that looks at no text."""

import numpy as np

from speckv.evaluation.compare import Comparison
from speckv.evaluation.replays import BEST_FIXED, CLAIRVOYANT


def judged_by(comparison: Comparison) -> str:
    """Whose speed-up decides: the first controller under test, or the bound where there is none."""
    return comparison.controllers[0] if comparison.controllers else CLAIRVOYANT


def choose_prompts(comparison: Comparison, per_task: int) -> tuple[str, ...]:
    """Takes the prompts of each task whose speed-up over the best fixed gamma is nearest to the task's median.

    Args:
        comparison: On the test prompts.
        per_task: Most prompts of each task; between equally near ones the first by name wins.

    Returns:
        Prompt ids, task by task, the nearest first.
    """
    grid = comparison.grid
    by_name = {sums.name: sums.seconds.sum(axis=1) for sums in comparison.sums}
    ours, fixed = by_name[judged_by(comparison)], by_name[BEST_FIXED]
    chosen: list[str] = []
    for task in sorted(set(grid.tasks)):
        rows = np.flatnonzero((np.array(grid.tasks) == task) & (ours > 0))
        ratio = fixed[rows] / ours[rows]
        distance = np.abs(ratio - np.median(ratio)) if len(rows) else ratio
        order = np.argsort(distance, kind="stable")[:per_task]
        chosen.extend(grid.prompt_ids[row] for row in rows[order])
    return tuple(chosen)


def describe_rule(comparison: Comparison, per_task: int) -> str:
    """The rule in a sentence."""
    number = f"{per_task} test prompts" if per_task > 1 else "test prompt"
    return (
        f"Of each task the {number} nearest to the task's median speed-up of {judged_by(comparison)} over the best "
        "fixed gamma, all compressions together; nobody chose them by their text."
    )
