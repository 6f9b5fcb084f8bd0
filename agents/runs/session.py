# SPDX-License-Identifier: Apache-2.0
"""What `train.py` does: check everything, say what there is to beat, train, save, evaluate once on the test prompts."""

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.depth import within_depth
from agents.registry import TrainingData, agent_settings, make_controller, require_batch, with_cost_table
from agents.rl.hyperparameters import LearnerSettings
from agents.runs.console import Console
from agents.runs.evaluating import CONSTANTS, evaluate_controllers, warn_of_waiting
from agents.runs.run_folder import EVALUATION, EVENTS, RunFolder, default_name, provenance
from agents.runs.settings import TrainSettings, hyperparameters
from agents.runs.task import Task, describe, load_task
from agents.runs.validation import Validator
from agents.stored import save_controller
from speckv.evaluation.compare import Comparison
from speckv.evaluation.metrics import ALL
from speckv.evaluation.report import TEXT
from speckv.evaluation.results import headline
from speckv.types import Controller


def train(settings: TrainSettings, console: Console, *, config: str, overrides: Sequence[str]) -> Comparison | None:
    """Runs one training from its settings.

    Args:
        settings: Checked.
        console: Takes what the user sees.
        config: The resolved config as YAML, stored with the run.
        overrides: What was set on the command line, stored with the run.

    Returns:
        The comparison on the test prompts, or None without one.

    Raises:
        SpecKVError: one clear error if anything does not fit; no folder is made then.
        InterruptedTraining: after saving a checkpoint, if a signal came.
    """
    name, agent = agent_settings(settings.agent)
    require_batch(name, agent, settings.cost.batch, settings.env.decides)
    task = load_task(settings.data, settings.cost, settings.learn)
    if name not in CONSTANTS:
        warn_of_waiting(settings.cost.batch)
    if isinstance(agent, LearnerSettings):
        return _train_learner(name, agent, settings, task, console, config=config, overrides=overrides)
    agent = within_depth(name, agent, task.learning.metadata.gamma_max)
    return _train_rule(name, agent, settings, task, console, config=config, overrides=overrides)


def _facts(settings: TrainSettings, name: str, task: Task) -> dict[str, object]:
    return {
        "agent": name,
        "cost": {"name": task.cost.name, "sha256": task.cost_sha256, "table": settings.cost.table},
        "seed": settings.seed,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        "threads": settings.threads,
        "traces": {"name": task.traces_name, "sha256": task.train.sha256},
        **provenance(),
    }


def _train_rule(
    name: str,
    agent: Any,
    settings: TrainSettings,
    task: Task,
    console: Console,
    *,
    config: str,
    overrides: Sequence[str],
) -> Comparison | None:
    console.write(describe(task))
    data = TrainingData(train=task.learning, cost=task.learning_cost, seed=settings.seed, hide=settings.env.hide)
    if name == "best_fixed":  # tuned on all train prompts by definition; what learns leaves the validation prompts out
        data = replace(data, train=task.train, cost=task.cost)
    controller = make_controller(name, agent, data)
    if settings.learn.reclock:
        met = {*task.learning.compressions, *task.test.compressions}
        known = [compression for compression in task.cost.compressions if compression in met]
        controller = with_cost_table(name, agent, controller, task.cost, known)
    folder = RunFolder.create(settings.output, settings.runs_dir, default_name(name, task.cost.name, settings.seed))
    folder.record_start(config, overrides, _facts(settings, name, task))
    save_controller(folder.path, name, agent, controller)
    validator = Validator(task.validation, task.learning_cost, task.validation_gammas)
    score = validator.score(controller)
    folder.append_evaluation(0, validator.grid, score.sums)
    return _finish(name, hyperparameters(agent), score.scalars(), 0, controller, settings, task, folder, console)


def _train_learner(
    name: str,
    agent: LearnerSettings,
    settings: TrainSettings,
    task: Task,
    console: Console,
    *,
    config: str,
    overrides: Sequence[str],
) -> Comparison | None:
    # Late, because PyTorch takes seconds to import and a wrong setting should not.
    from agents.runs.learner_run import make_environment, train_learner

    agent.check_environment(settings.env.decides)
    env = make_environment(task.learning, task.learning_cost, settings.env, settings.reward, agent.num_envs)
    facts = _facts(settings, name, task)
    if settings.resume is not None:
        folder = RunFolder(Path(settings.resume))
        folder.require_same(facts, ("agent", "cost", "traces", "seed"))
    console.write(describe(task))
    if settings.resume is None:
        folder = RunFolder.create(settings.output, settings.runs_dir, default_name(name, task.cost.name, settings.seed))
        folder.record_start(config, overrides, facts)
    console.write(
        f"{name}: {agent.total_steps:,} environment steps, {agent.num_envs} environments, on the CPU with "
        f"{settings.threads} thread{'s' if settings.threads > 1 else ''}; run folder {folder.path}"
    )
    validator = Validator(task.validation, task.learning_cost, task.validation_gammas)
    controller = train_learner(
        agent,
        settings,
        env,
        folder,
        validator,
        console,
        provenance={
            "agent": name,
            "cost": task.learning_cost.name,
            "cost_sha256": task.learning_cost.sha256,
            "seed": settings.seed,
            "traces": Path(settings.learn.traces or task.traces_name).name,
            "traces_sha256": task.learning.sha256,
        },
        resume=settings.resume is not None,
    )
    scalars = validator.score(controller).scalars()
    return _finish(
        name, hyperparameters(agent), scalars, agent.total_steps, controller, settings, task, folder, console
    )


def _finish(
    name: str,
    hyperparameters: Mapping[str, str | int | float],
    validation: Mapping[str, float],
    step: int,
    controller: Controller,
    settings: TrainSettings,
    task: Task,
    folder: RunFolder,
    console: Console,
) -> Comparison | None:
    """Evaluates once on the test prompts, unless a search asks not to, prints the table, and closes the record."""
    from agents.runs.tensorboard import RunWriter

    final = {f"final/{key.removeprefix('eval/')}": value for key, value in validation.items()}
    comparison = None
    if settings.eval.on_test:
        comparison = evaluate_controllers(
            [controller],
            train=task.train,
            test=task.test,
            cost=task.cost,
            output=folder / EVALUATION,
            num_resamples=settings.eval.num_resamples,
            seed=settings.seed,
            console=console,
            train_sweep=task.sweep,
        )
        row = comparison.group(ALL, ALL).row(controller.name)
        final["final/test_throughput"] = row.throughput
        final["final/test_speedup_vs_ar"] = row.geomean_vs_ar.estimate
        final["final/test_speedup_vs_best_fixed"] = row.geomean_vs_best_fixed.estimate
    shared: dict[str, str | int | float] = {
        "agent": name,
        "cost": task.cost.name,
        "reward": settings.reward.name,
        "seed": settings.seed,
        "traces": Path(task.traces_name).name,
    }
    writer = RunWriter(folder / EVENTS)
    writer.layout()
    if comparison is not None:
        pictures = {path.stem: path for path in sorted((folder / EVALUATION).glob("*.png"))}
        writer.evaluation((folder / EVALUATION / TEXT).read_text(encoding="utf-8"), pictures, step)
    writer.hyperparameters({**shared, **hyperparameters}, final, step)
    writer.close()
    figures = headline(comparison) if comparison is not None else final
    console.write(json.dumps({**figures, "run": str(folder.path)}, sort_keys=True))
    return comparison
