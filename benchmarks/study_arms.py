# SPDX-License-Identifier: Apache-2.0
"""One arm of a study: a `speckv train` command line, trained in a folder that is thrown away, and evaluated."""

import io
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.study_store import Record
from speckv.agents.registry import agent_settings
from speckv.agents.runs.console import Console
from speckv.agents.runs.monitor import RunWriter
from speckv.agents.runs.run_folder import EVENTS, Run, RunFolder
from speckv.agents.runs.task import Task, load_task
from speckv.agents.runs.training import train_on_recordings
from speckv.commands import train as program
from speckv.commands.app import compose_checked
from speckv.errors import SpecKVError
from speckv.evaluation.bootstrap import Interval
from speckv.evaluation.compare import compare
from speckv.evaluation.curves import EVAL, Point
from speckv.evaluation.metrics import ALL
from speckv.runtime.policy import load_controller
from speckv.types import Controller


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One thing to train.

    Attributes:
        name: Key of its records.
        overrides: Overrides of the command.
    """

    name: str
    overrides: tuple[str, ...]


def on_test(task: Task, controller: Controller, num_resamples: int) -> dict[str, Record]:
    """Speed-up over the best fixed gamma on test prompts, by compression and as geometric mean over them."""
    comparison = compare(
        train=task.train,
        test=task.test,
        cost=task.cost,
        controllers=[controller],
        num_resamples=num_resamples,
        train_sweep=task.sweep,
    )
    rows = {name: comparison.group(name, ALL).row(controller.name) for name in (*task.test.compressions, ALL)}
    return {
        name: interval(row.geomean_vs_best_fixed if name == ALL else row.speedup_vs_best_fixed)
        for name, row in rows.items()
    }


def interval(value: Interval) -> Record:
    """As JSON."""
    return {"estimate": value.estimate, "low": value.low, "high": value.high}


def validation(point: Point) -> Record:
    """One evaluation on validation prompts, as JSON."""
    over = {name: value.estimate for name, value in point.over_best_fixed.items()}
    return {
        "step": float(point.step),
        "vs_best_fixed": over.pop(ALL),
        "drafted_per_step": point.drafted_per_step,
        **{f"vs_best_fixed_{name}": value for name, value in over.items()},
    }


def run_arm(arm: Arm, *, cost: str, steps: int, seed: int, evaluations: int, num_resamples: int) -> Record:
    """Trains one arm in a folder that is thrown away, and evaluates it."""
    overrides = [
        *arm.overrides,
        f"cost={cost}",
        f"seed={seed}",
        f"agent.total_steps={steps}",
        f"eval.every_steps={max(steps // evaluations, 1)}",
    ]
    record: Record = {"command": " ".join(["speckv train", *overrides])}
    began = time.monotonic()
    try:
        settings = program.settings_from(compose_checked(program.NAME, overrides))
        name, agent = agent_settings(settings.agent)
        silent = Console(io.StringIO())
        run = Run(name=name, agent=agent, settings=settings, console=silent, config="", overrides=overrides)
        task = load_task(settings.data, settings.cost)
        validator = task.validator()
        training = train_on_recordings(run, task, validator)
        with tempfile.TemporaryDirectory() as path:
            folder = RunFolder(Path(path))
            training.begin(folder)
            with closing(RunWriter(folder / EVENTS)) as writer:
                training.learn(folder, writer)
            best = load_controller(path)
            curve = [validation(point) for point in validator.read_points(folder / EVAL)]
    except SpecKVError as error:
        return record | {"error": str(error)}
    record["train_s"] = round(time.monotonic() - began, 1)
    record |= {"validation": curve, "last": curve[-1], "best": max(curve, key=lambda point: point["vs_best_fixed"])}
    return record | {"test": on_test(task, best, num_resamples)}
