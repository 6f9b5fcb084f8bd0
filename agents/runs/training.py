# SPDX-License-Identifier: Apache-2.0
"""One training run: `train`, and the setups of runs on recordings and of live runs."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from speckv.agents.own import OwnController
from speckv.agents.registry import (
    AGENTS,
    TrainingData,
    agent_settings,
    make_controller,
    require_batch,
    within_depth,
)
from speckv.agents.rl.hyperparameters import LearnerSettings, OnPolicySettings
from speckv.agents.rl.learners import build_learner, make_learner
from speckv.agents.runs import checkpoint
from speckv.agents.runs.checkpoint import LearnerProgress, find_source, start_learner
from speckv.agents.runs.closing import CURVE, next_steps, save_curve
from speckv.agents.runs.console import Console, catch_signals
from speckv.agents.runs.environments import (
    REWARDS_WITH_LAMBDA,
    LearnerEnvironment,
    LiveEnvironment,
    ReplayEnvironment,
    make_environment,
    make_live_environment,
)
from speckv.agents.runs.evaluating import CONSTANTS, report_comparison, warn_of_waiting
from speckv.agents.runs.live_comparison import compare_live, report_live
from speckv.agents.runs.monitor import LiveMonitor, Monitor, MonitorContext, ReplayMonitor, RunWriter
from speckv.agents.runs.online import OnlineTraining
from speckv.agents.runs.requests import (
    DecodedRequest,
    Loader,
    RequestLog,
    load_live_task,
    load_models,
    summarise,
    warm_up,
)
from speckv.agents.runs.run_folder import EVALUATION, EVENTS, LAST, Run, RunFolder
from speckv.agents.runs.settings import TrainSettings, hyperparameters
from speckv.agents.runs.task import Score, Task, Validator, load_task
from speckv.errors import ConfigError, SpecKVError, nearest
from speckv.evaluation.compare import compare
from speckv.evaluation.curves import EVAL
from speckv.evaluation.metrics import ALL
from speckv.evaluation.report import FIRST_FIGURE, TEXT
from speckv.evaluation.results import headline
from speckv.export.making import recording_facts
from speckv.models.device import use_threads
from speckv.runtime.policy import load_controller
from speckv.runtime.shipped import with_cost_table
from speckv.types import Controller, FloatArray

DECODED = "decoded.jsonl"
_NEVER = 10**12
"""More episodes than any run has."""

Figures = Mapping[str, object]


class Training(Protocol):
    """A way to learn: a fit, a Stable-Baselines3 learner, or an online learner."""

    @property
    def done(self) -> int:
        """Steps so far."""

    def begin(self, folder: RunFolder) -> str:
        """Starts or resumes, and describes the training in a few words."""

    def learn(self, folder: RunFolder, writer: RunWriter) -> None:
        """Learns to the end."""


def train(
    settings: TrainSettings,
    console: Console,
    *,
    config: str,
    overrides: Sequence[str],
    load: Loader = load_models,
) -> RunFolder:
    """Runs one training.

    Raises:
        SpecKVError: if anything does not fit, and no folder is made then; or if the models of a live run fail, after
            the controller is saved.
        InterruptedTraining: after saving, if a signal came.
    """
    name, agent = agent_settings(settings.agent)
    run = Run(name=name, agent=agent, settings=settings, console=console, config=config, overrides=overrides)
    setup = ReplaySetup(run) if settings.live is None else LiveSetup(run, load)
    console.write(setup.task.describe())
    training: Training = setup.prepare()
    folder = setup.open_folder()
    summary = training.begin(folder)
    if summary:
        console.write(f"{name}: {summary}; run folder {folder.path}")
    with closing(RunWriter(folder / EVENTS, purge_step=training.done + 1 if run.resumes else None)) as writer:
        final, printed = setup.learn_and_evaluate(folder, writer)
        if final:
            shared = {"agent": name, "reward": settings.reward.name, **setup.names, **hyperparameters(setup.run.agent)}
            writer.hyperparameters({"seed": settings.seed, **shared}, final, training.done)
    console.result({**printed, "run": str(folder.path)})
    return folder


class Fitting:
    """Fits a controller to the learning prompts in one go."""

    done = 0

    def __init__(self, run: Run, task: Task, validator: Validator) -> None:
        settings = run.settings
        data = TrainingData(
            train=task.learning,
            cost=task.learning_cost,
            seed=settings.seed,
            hide=settings.env.hide,
            told=settings.cost.known,
        )
        if run.name == "best_fixed":  # by definition tuned on all train prompts, validation prompts included
            data = replace(data, train=task.train, cost=task.cost)
        controller = make_controller(run.name, run.agent, data)
        if settings.learn.reclock:
            met = {*task.learning.compressions, *task.test.compressions}
            known = [compression for compression in task.cost.compressions if compression in met]
            controller = with_cost_table(controller, task.cost, known)
        if isinstance(controller, OwnController):
            controller.require_storable()
        self._run, self._task, self._validator, self._controller = run, task, validator, controller
        self._score: Score | None = None

    def begin(self, folder: RunFolder) -> str:  # noqa: ARG002
        """Does nothing."""
        return ""

    def learn(self, folder: RunFolder, writer: RunWriter) -> None:
        """Stores and scores the controller."""
        writer.layout()
        folder.save_policy(self._controller, provenance_of(self._run, self._task), **self._task.deployment)
        self._score = self._validator.score(self._controller)
        folder.append_evaluation(0, self._validator.grid, self._score.sums)

    def best(self, folder: RunFolder, validator: Validator) -> tuple[Controller, Score]:  # noqa: ARG002
        """The controller and its score on validation prompts."""
        assert self._score is not None, "learn comes first"
        return self._controller, self._score


class LearnerTraining:
    """A Stable-Baselines3 learner in an environment: from its first step, a stored policy or a checkpoint.

    Args:
        place: Describes environments and machine; without it, the start of learning is described.
        source: Folder of a stored policy to begin with.
    """

    def __init__(
        self,
        run: Run,
        env: LearnerEnvironment,
        make_monitor: Callable[[MonitorContext], Monitor],
        *,
        provenance: Mapping[str, object],
        deployment: Mapping[str, Any] | None = None,
        place: str | None = None,
        source: Path | None = None,
    ) -> None:
        self._run, self._env, self._make_monitor = run, env, make_monitor
        self._provenance, self._deployment = provenance, deployment or {}
        self._place, self._begun_with = place, "nothing"
        self._progress = LearnerProgress()
        self._model: BaseAlgorithm | None = None
        if source is not None:
            self._model = self._unmeasured()
            self._begun_with = start_learner(self._model, source, env.gamma_max)

    @property
    def model(self) -> BaseAlgorithm:
        """The learner, after `begin`."""
        assert self._model is not None, "begin comes first"
        return self._model

    @property
    def done(self) -> int:
        """Environment steps so far."""
        return int(self.model.num_timesteps)

    @property
    def recent(self) -> Sequence[DecodedRequest]:
        """The last live requests."""
        return self._env.recent

    def begin(self, folder: RunFolder) -> str:
        """Loads the checkpoint of a resumed run, or measures the observations' scale with random actions."""
        run, env = self._run, self._env
        settings = run.settings
        if run.resumes:
            self._model = self._unmeasured()
            self._progress = checkpoint.load(folder / LAST, self._model, env.state)
            folder.drop_evaluations_after(self.done)
            self._begun_with = f"step {self.done:,}"
        elif self._model is None:
            self._model = build_learner(run.agent, env.vec, settings.seed, hide=settings.env.hide)
        env.begin(self.model, resumed=run.resumes)
        if settings.reward.name in REWARDS_WITH_LAMBDA:
            env.state.set_lambda(self._progress.rates)
        return f"{run.agent.total_steps:,} environment steps, {self._place or f'beginning with {self._begun_with}'}"

    def _unmeasured(self) -> BaseAlgorithm:
        zeros: FloatArray = np.zeros(self._env.vec.observation_space.shape or (), np.float32)
        return make_learner(self._run.agent, self._env.vec, seed=self._run.settings.seed, mean=zeros, std=zeros + 1)

    def learn(self, folder: RunFolder, writer: RunWriter) -> None:
        """Learns to the end; every update may be saved. A signal raises InterruptedTraining after the next save."""
        model, total = self.model, self._run.agent.total_steps
        if self.done >= total:
            return
        model.set_logger(Logger(None, [writer]))
        with catch_signals() as request, self._run.console.progress(total, self.done) as bar:
            context = MonitorContext(
                settings=self._run.settings,
                folder=folder,
                writer=writer,
                bar=bar,
                request=request,
                progress=self._progress,
                provenance=self._provenance,
                deployment=self._deployment,
            )
            # The monitor writes the log of a learner that counts episodes for it, not rollouts.
            every = _NEVER if isinstance(model, OffPolicyAlgorithm) else 1
            try:
                model.learn(
                    total - self.done,
                    callback=self._make_monitor(context),
                    log_interval=every,
                    reset_num_timesteps=not self._run.resumes,
                )
            finally:
                self._env.end()
            request.raise_if_set()

    def best(self, folder: RunFolder, validator: Validator) -> tuple[Controller, Score]:
        """The best checkpoint's controller and its score on validation prompts."""
        controller = load_controller(folder.path)
        return controller, validator.score(controller)


def train_on_recordings(run: Run, task: Task, validator: Validator) -> LearnerTraining:
    """A learner on the learning prompts of a task."""
    settings = run.settings
    vec = make_environment(task.learning, task.learning_cost, settings.env, settings.reward, run.agent.num_envs)
    torch.set_num_threads(settings.threads)
    env, threads = ReplayEnvironment(vec), f"{settings.threads} thread{'s' if settings.threads > 1 else ''}"
    return LearnerTraining(
        run,
        env,
        partial(ReplayMonitor, env, validator),
        provenance=provenance_of(run, task),
        deployment=task.deployment,
        place=f"{run.agent.num_envs} environments, on the CPU with {threads}",
    )


def provenance_of(run: Run, task: Task) -> dict[str, object]:
    """Provenance of the controller of a run on recordings."""
    return {
        **recording_facts(task.train),
        "agent": run.name,
        "cost": task.learning_cost.name,
        "cost_sha256": task.learning_cost.sha256,
        "seed": run.settings.seed,
        "traces": Path(run.settings.learn.traces or task.traces_name).name,
        "traces_sha256": task.learning.sha256,
    }


class ReplaySetup:
    """A run on recordings."""

    _training: Fitting | LearnerTraining

    def __init__(self, run: Run) -> None:
        settings = run.settings
        require_batch(run.name, run.agent, settings.cost.batch, settings.env.decides)
        self.task = load_task(settings.data, settings.cost, settings.learn)
        if run.name not in CONSTANTS:
            warn_of_waiting(settings.cost.batch)
        if isinstance(run.agent, LearnerSettings):
            run.agent.check_environment(settings.env.decides)
        else:
            run = replace(run, agent=within_depth(run.name, run.agent, self.task.learning.metadata.gamma_max))
        self.run = run
        self.names = {"cost": self.task.cost.name, "traces": Path(self.task.traces_name).name}
        self._validator = self.task.validator()

    def prepare(self) -> Fitting | LearnerTraining:
        """Makes the learner, or fits the controller."""
        make = train_on_recordings if isinstance(self.run.agent, LearnerSettings) else Fitting
        self._training = make(self.run, self.task, self._validator)
        return self._training

    def open_folder(self) -> RunFolder:
        """Opens the run folder."""
        task, settings = self.task, self.run.settings
        facts = {
            "cost": {"name": task.cost.name, "sha256": task.cost.sha256, "table": settings.cost.table},
            "traces": {"name": task.traces_name, "sha256": task.train.sha256},
        }
        return self.run.open_folder(self.run.name, task.cost.name, facts, {"threads": settings.threads})

    def learn_and_evaluate(self, folder: RunFolder, writer: RunWriter) -> tuple[dict[str, float], Figures]:
        """Learns, then compares on the test prompts unless a search leaves that out."""
        task, settings = self.task, self.run.settings
        self._training.learn(folder, writer)
        controller, score = self._training.best(folder, self._validator)
        final = {f"final/{key.removeprefix('eval/')}": value for key, value in score.scalars().items()}
        if not settings.eval.on_test:
            return final, final
        comparison = compare(
            train=task.train,
            test=task.test,
            cost=task.cost,
            controllers=[controller],
            num_resamples=settings.eval.num_resamples,
            seed=settings.seed,
            train_sweep=task.sweep,
        )
        output = folder / EVALUATION
        save_curve(folder / EVAL, self._validator, folder / CURVE)
        report_comparison(comparison, [controller], task.test, task.cost, output, self.run.console)
        self.run.console.write(next_steps(self.run, comparison, folder.path))
        row = comparison.group(ALL, ALL).row(controller.name)
        final["final/test_throughput"] = row.throughput
        final["final/test_speedup_vs_ar"] = row.geomean_vs_ar.estimate
        final["final/test_speedup_vs_best_fixed"] = row.geomean_vs_best_fixed.estimate
        first = output / FIRST_FIGURE
        pictures = {path.stem: path for path in (first, *sorted(set(output.glob("*.png")) - {first}))}
        writer.evaluation((output / TEXT).read_text(encoding="utf-8"), pictures, self._training.done)
        return final, headline(comparison)


class LiveSetup:
    """A run in which real models decode."""

    _training: LearnerTraining | OnlineTraining

    def __init__(self, run: Run, load: Loader) -> None:
        settings = run.settings
        assert settings.live is not None
        _require_learns_live(run.name, run.agent, settings.env.decides)
        self.run, self._live = run, settings.live
        self._source: Path | None = None
        if settings.init_from is not None and not run.resumes:
            self._source = find_source(settings.init_from, settings.cost.table)
        use_threads(self._live.threads)
        self.task = load_live_task(settings, load)
        self.names = {"cost": self.task.cost.name}
        self._log = RequestLog()

    def prepare(self) -> LearnerTraining | OnlineTraining:
        """Makes the learner and warms the models up."""
        run, task, log = self.run, self.task, self._log
        provenance: dict[str, str | int | float] = {
            "agent": run.name,
            "cost": task.cost.name,
            "cost_sha256": task.cost.sha256,
            "init_from": run.settings.init_from or "",
            "live": json.dumps(task.facts, sort_keys=True),
            "seed": run.settings.seed,
        }
        if isinstance(run.agent, LearnerSettings):
            env = LiveEnvironment(make_live_environment(task, run.settings), log, run.name, self._live.recent)
            monitor = partial(LiveMonitor, env)
            self._training = LearnerTraining(run, env, monitor, provenance=provenance, source=self._source)
        else:
            self._training = OnlineTraining(run, task, log, self._source, provenance)
        warm_up(task)
        return self._training

    def open_folder(self) -> RunFolder:
        """Opens the run folder and the log of requests in it."""
        cost = self.task.cost
        facts = {"cost": {"name": cost.name, "sha256": cost.sha256}, "live": self.task.facts}
        others = {"init_from": self.run.settings.init_from}
        folder = self.run.open_folder(f"{self.run.name}-live", cost.name, facts, others)
        self._log.path = folder / DECODED
        return folder

    def learn_and_evaluate(self, folder: RunFolder, writer: RunWriter) -> tuple[dict[str, float], Figures]:
        """Learns, then compares on the held-out prompts; an error or Ctrl-C prints where the saved state is."""
        training = self._training
        try:
            training.learn(folder, writer)
            if training.recent:
                self.run.console.write(
                    f"\nWhile learning, the last {len(training.recent)} requests: "
                    f"{summarise(training.recent)['tokens_per_s']:.2f} tokens/s, exploration included, on train prompts"
                )
            comparison = None
            if self._live.heldout:
                controller = load_controller(folder.path)
                with catch_signals() as request:
                    comparison = compare_live(self.task, controller, self._live.fixed_gammas, self._log, request)
            final = report_live(self.run, self.task, folder, training.recent, comparison)
        except (SpecKVError, KeyboardInterrupt):
            self.run.console.write(
                f"stopped; what was learned and decoded until then is in {folder.path}: decode with "
                f"controller={folder.path}, or go on with resume={folder.path}"
            )
            raise
        return final, final


def _require_learns_live(name: str, agent: Any, decides: str) -> None:
    known = sorted(n for n, a in AGENTS.items() if a.online or issubclass(a.settings_class, OnPolicySettings))
    if name not in known:
        raise ConfigError(
            f"Expected an agent that learns from live requests, of {known}, got {name!r}.{nearest(name, known)} "
            "Others are made by `speckv train` without env=live, and decode live with `speckv decode`."
        )
    if not isinstance(agent, LearnerSettings):
        if decides != "per_step":
            raise ConfigError(f"Expected env=live for {name}, which decides at moments of its own, got {decides}.")
        return
    agent.check_environment(decides)
    if agent.num_envs != 1:
        raise ConfigError(f"Expected agent.num_envs=1 with env=live, got {agent.num_envs}: one request is decoded.")
