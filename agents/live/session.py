# SPDX-License-Identifier: Apache-2.0
"""What `train.py env=live` does: check, load models, learn while they decode, save, and compare on held-out prompts."""

import datetime
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from agents.bandits.base import Bandit
from agents.console import Console
from agents.live.comparison import compare_live
from agents.live.decoded import Decoded, DecodedLog, summarise
from agents.live.learner import LiveLearner, make_live_environment
from agents.live.requests import warm_up
from agents.live.settings import LiveSettings
from agents.live.starting import find_source, start_bandit
from agents.live.stream import CHECKPOINT, Stream, StreamState, load_stream, save_stream
from agents.live.task import LiveTask, Loader, load_live_task, load_models
from agents.registry import AGENTS, Lesson, agent_settings, begin_learner
from agents.rl.settings import LearnerSettings, OnPolicySettings
from agents.settings import TrainSettings, hyperparameters
from agents.stored import load_controller, save_controller
from agents.training.interrupts import InterruptedTraining, StopRequest, catch_signals
from agents.training.run_folder import EVENTS, RunFolder, commit, default_name, machine, require_same, versions
from agents.training.task import hash_cost, load_splits
from agents.training.tensorboard import RunWriter
from speckv.errors import ConfigError, SpecKVError, nearest
from speckv.files import canonical_json, write_atomically
from speckv.profiling.machine import describe_machine

DECODED = "decoded.jsonl"
REPORT = Path("evaluation") / "live.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What every part of a run is given."""

    name: str
    agent: Any
    settings: TrainSettings
    live: LiveSettings
    task: LiveTask
    console: Console
    config: str
    overrides: Sequence[str]
    source: Path | None

    def facts(self) -> dict[str, object]:
        cost = self.task.cost
        return {
            "agent": self.name,
            "commit": commit(),
            "cost": {"name": cost.name, "sha256": hash_cost(cost)},
            "init_from": self.settings.init_from,
            "live": self.task.facts,
            "machine": machine(),
            "seed": self.settings.seed,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
            "versions": versions(),
        }

    def folder(self) -> RunFolder:
        """Opens the folder to resume, or makes a new one."""
        facts = self.facts()
        if self.settings.resume is not None:
            folder = RunFolder(Path(self.settings.resume))
            require_same(folder, facts, ("agent", "cost", "live", "seed"))
            return folder
        name = default_name(f"{self.name}-live", self.task.cost.name, self.settings.seed)
        folder = RunFolder.create(self.settings.output, self.settings.runs_dir, name)
        folder.record_start(self.config, self.overrides, facts)
        return folder


def train_live(
    settings: TrainSettings,
    console: Console,
    *,
    config: str,
    overrides: Sequence[str],
    load: Loader = load_models,
) -> dict[str, object]:
    """Runs one live training from its settings.

    Args:
        settings: Checked, with `live`.
        console: Takes what the user sees.
        config: The resolved config as YAML, stored with the run.
        overrides: What was set on the command line, stored with the run.
        load: Loads the models.

    Returns:
        The report, as `evaluation/live.json` holds it.

    Raises:
        SpecKVError: one clear error if anything does not fit, and no folder is made then; or if models fail while they
            decode, after what was learned is saved.
        InterruptedTraining: after saving, if a signal came.
    """
    assert settings.live is not None
    name, agent = agent_settings(settings.agent)
    _require_learns_live(name, agent, settings.env.decides)
    source = None
    if settings.init_from is not None and settings.resume is None:
        source = find_source(settings.init_from, settings.cost.table)
    if settings.live.threads is not None:
        torch.set_num_threads(settings.live.threads)
    task = load_live_task(settings, settings.live, load)
    run = _Run(
        name=name,
        agent=agent,
        settings=settings,
        live=settings.live,
        task=task,
        console=console,
        config=config,
        overrides=overrides,
        source=source,
    )
    return _train_learner(run) if isinstance(agent, LearnerSettings) else _train_bandit(run)


def _require_learns_live(name: str, agent: Any, decides: str) -> None:
    known = sorted(n for n, a in AGENTS.items() if a.begin is not None or issubclass(a.settings, OnPolicySettings))
    if name not in known:
        raise ConfigError(
            f"Expected an agent that learns from live requests, of {known}, got {name!r}.{nearest(name, known)} "
            "Others are made by `train.py` without env=live, and decode live with `python -m speckv decode`."
        )
    if not isinstance(agent, LearnerSettings):
        if decides != "per_step":
            raise ConfigError(f"Expected env=live for {name}, which itself says when it decides, got {decides}.")
        return
    agent.check_environment(decides)
    if agent.num_envs != 1:
        raise ConfigError(f"Expected agent.num_envs=1 with env=live, got {agent.num_envs}: one request is decoded.")


def _train_bandit(run: _Run) -> dict[str, object]:
    state = StreamState()
    if run.settings.resume is not None:
        bandit, state = load_stream(Path(run.settings.resume) / CHECKPOINT, run.name, run.agent)
        begun = f"request {state.next_request} of the stream"
    elif run.source is not None:
        task = run.task
        bandit = start_bandit(run.name, run.agent, run.source, task.cost, task.compression, run.settings.seed)
        begun = f"what {run.source} has learned"
    else:
        bandit = _begin_bandit(run)
        begun = "nothing"
    folder = run.folder()
    log = DecodedLog(folder / DECODED)
    log.forget_from(state.next_request)
    run.console.write(run.task.describe())
    run.console.write(f"{run.name}: {run.live.requests} requests, beginning with {begun}; run folder {folder.path}")

    def save(learned: Bandit, so_far: StreamState) -> None:
        save_controller(folder.path, run.name, run.agent, learned)
        save_stream(folder / CHECKPOINT, run.name, learned, so_far)

    if run.settings.resume is None:
        save(bandit, state)
    purge = state.num_steps + 1 if run.settings.resume is not None else None
    keep = partial(save_controller, folder.path, run.name, run.agent, bandit)
    with _watched(run, folder, keep, purge) as (request, writer):
        warm_up(run.task)
        stream = Stream(
            task=run.task,
            num_requests=run.live.requests,
            recent=run.live.recent,
            seed=run.settings.seed,
            log=log,
            writer=writer,
            save=save,
        )
        with run.console.progress(run.live.requests, state.next_request, "request") as bar:
            stream.learn(bandit, state, request, bar)
        return _finish(run, folder, state.recent, state.num_steps, log, request, writer)


def _begin_bandit(run: _Run) -> Bandit:
    train, _ = load_splits(run.settings.data)
    compression = run.task.compression
    if compression in train.compressions:
        train = train.select(compressions=(compression,))
    bandit = begin_learner(run.name, run.agent, Lesson(train=train, cost=run.task.cost, seed=run.settings.seed))
    assert isinstance(bandit, Bandit)
    return bandit


def _train_learner(run: _Run) -> dict[str, object]:
    env = make_live_environment(run.task, run.settings)
    folder = run.folder()
    log = DecodedLog(folder / DECODED)
    run.console.write(run.task.describe())
    warm_up(run.task)
    learner = LiveLearner(
        run.name,
        run.agent,
        run.settings,
        env,
        log,
        source=run.source,
        resume=folder if run.settings.resume is not None else None,
    )
    begun = f"step {learner.done:,}" if run.settings.resume is not None else learner.started_from
    run.console.write(
        f"{run.name}: {run.agent.total_steps:,} environment steps, beginning with {begun}; run folder {folder.path}"
    )
    provenance: dict[str, str | int | float] = {
        "agent": run.name,
        "cost": run.task.cost.name,
        "cost_sha256": hash_cost(run.task.cost),
        "init_from": run.settings.init_from or "",
        "live": json.dumps(run.task.facts, sort_keys=True),
        "seed": run.settings.seed,
    }
    purge = learner.done + 1 if run.settings.resume is not None else None
    with _watched(run, folder, lambda: None, purge) as (request, writer):
        learner.learn(folder, writer, run.console, request, provenance)
        return _finish(run, folder, learner.recent, learner.done, log, request, writer)


@contextmanager
def _watched(
    run: _Run, folder: RunFolder, save: Callable[[], None], purge_step: int | None = None
) -> Iterator[tuple[StopRequest, RunWriter]]:
    """Signals and events of a run; what was learned until an error is saved, and the user is told where."""
    writer = RunWriter(folder / EVENTS, purge_step=purge_step)
    try:
        with catch_signals() as request:
            yield request, writer
    except (SpecKVError, KeyboardInterrupt) as error:
        if not isinstance(error, InterruptedTraining):
            save()
            run.console.write(
                f"stopped; what was learned and decoded until then is in {folder.path}: decode with controller="
                f"{folder.path}, or go on with resume={folder.path}"
            )
        raise
    finally:
        writer.close()


def _finish(
    run: _Run,
    folder: RunFolder,
    recent: Sequence[Decoded],
    step: int,
    log: DecodedLog,
    request: StopRequest,
    writer: RunWriter,
) -> dict[str, object]:
    """Compares on the held-out prompts, prints the report, and closes the record."""
    report: dict[str, object] = {
        "agent": run.name,
        "cost": run.task.cost.name,
        "live": run.task.facts,
        "machine": describe_machine(),
        "run": str(folder.path),
    }
    final: dict[str, float] = {}
    if recent:
        final["final/tokens_per_s_recent"] = summarise(recent)["tokens_per_s"]
        report["last_requests"] = {"requests": len(recent), **summarise(recent)}
        run.console.write(
            f"\nWhile learning, the last {len(recent)} requests: {final['final/tokens_per_s_recent']:.2f} tokens/s, "
            "exploration included, on train prompts"
        )
    if run.live.heldout:
        # What is stored decodes, not what is in memory: the figures are those of the run folder.
        stored = load_controller(folder.path)
        comparison = compare_live(run.task, stored, run.live.fixed_gammas, log, request)
        report["comparison"] = comparison.to_dict()
        final["final/tokens_per_s"] = comparison.arms[stored.name].tokens_per_s
        final |= {f"final/{name}": value for name, value in comparison.ratios().items()}
        run.console.write(f"\n{comparison.render()}")
    shared: dict[str, str | int | float] = {
        "agent": run.name,
        "cost": run.task.cost.name,
        "reward": run.settings.reward.name,
        "seed": run.settings.seed,
    }
    if final:
        writer.hyperparameters({**shared, **hyperparameters(run.agent)}, final, step)
    write_atomically(folder / REPORT, canonical_json(report))
    run.console.write(json.dumps({**final, "run": str(folder.path)}, sort_keys=True))
    return report
