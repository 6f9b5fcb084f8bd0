# SPDX-License-Identifier: Apache-2.0
"""The end of a training run besides the comparison: the learning curve as a picture, and what to do next."""

from pathlib import Path

from matplotlib.figure import Figure

from speckv.agents.runs.run_folder import Run
from speckv.agents.runs.task import Validator
from speckv.evaluation.compare import Comparison
from speckv.evaluation.metrics import ALL
from speckv.evaluation.plots import learning_curve
from speckv.evaluation.report import save_figure
from speckv.evaluation.summary import too_few

CURVE = "learning_curve.png"
_RESAMPLES = 1000
GAINS_MOST = "survival_stopping"
"""The trained agent that gains most in benchmarks/results/zoo-*.json; a test compares."""
LEVEL_WITH_IT = (GAINS_MOST, "calibrated_stopping", "self_timed", "self_timed_online")
COSTS = ("cpu-2core", "rtx3090-paper")
SHIPPED = ("qwen2.5-coder-greedy", "qwen2.5-coder-t1")
"""Recordings on which that was measured, with those cost tables."""


def save_curve(path: Path, validator: Validator, picture: Path) -> None:
    """Draws a run's `eval.csv`, if it holds more than one evaluation."""
    curve = validator.read_curve(path, num_resamples=_RESAMPLES)
    if len(curve.points) < 2:
        return
    figure = Figure(figsize=(8.4, 4.6), dpi=150, layout="constrained")
    names = [name for name in curve.points[0].over_best_fixed if name != ALL]
    intervals = {name: [point.over_best_fixed[name] for point in curve.points] for name in (*names, ALL)}
    shown = intervals if len(names) > 1 else {names[0]: intervals[names[0]]}
    labels = {("all, geometric mean" if name == ALL else name): values for name, values in shown.items()}
    learning_curve(figure.add_subplot(), [point.step for point in curve.points], labels)
    figure.supxlabel(f"n = {curve.num_prompts} validation prompts; bands: 95 % bootstrap intervals", fontsize=8)
    save_figure(figure, picture)


def next_steps(run: Run, comparison: Comparison, folder: Path) -> str:
    """Commands that show more, and the one that gains more; at most five lines."""
    lines = [f"see more:    speckv report {folder}", f"             tensorboard --logdir {folder}"]
    if few := too_few(comparison):
        return "\n".join([*lines, few.partition(":")[0] + " are too few to tell what to do next."])
    (name,) = comparison.entrants
    gain = comparison.group(ALL if len(comparison.grid.compressions) > 1 else comparison.grid.compressions[0]).row(name)
    ratio, prompts = gain.geomean_vs_best_fixed.estimate, comparison.setting.test_prompts
    said = f"{name}: {ratio:.3f} times as fast as the best fixed gamma on {prompts} test prompts"
    if run.name in LEVEL_WITH_IT:
        advice = f"use it:      speckv export {folder}"
    elif run.settings.data.traces in SHIPPED and run.settings.cost.table in COSTS:
        advice = f"gains more:  speckv train agent={GAINS_MOST}"
    else:
        advice = f"compare it:  speckv evaluate controllers={folder} agents=all"
    return "\n".join([*lines, said, advice])
