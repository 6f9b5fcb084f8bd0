# SPDX-License-Identifier: Apache-2.0
"""What `train.py env=live` does: check, load models, learn while they decode, save, and compare on held-out prompts."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from agents.bandits.base import Bandit
from agents.registry import AGENTS, TrainingData, agent_settings, begin_learner
from agents.rl.hyperparameters import LearnerSettings, OnPolicySettings
from agents.runs.console import Console
from agents.runs.live.decoded import DecodedLog
from agents.runs.live.learner import LiveLearner, make_live_environment
from agents.runs.live.requests import warm_up
from agents.runs.live.run import DECODED, LiveRun
from agents.runs.live.starting import find_source, start_bandit
from agents.runs.live.stream import CHECKPOINT, Stream, StreamState, load_stream, save_stream
from agents.runs.live.task import Loader, load_live_task, load_models
from agents.runs.settings import TrainSettings
from agents.runs.task import load_splits
from agents.stored import save_controller
from speckv.errors import ConfigError, nearest
from speckv.models.device import use_threads


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
    use_threads(settings.live.threads)
    run = LiveRun(
        name=name,
        agent=agent,
        settings=settings,
        live=settings.live,
        task=load_live_task(settings, settings.live, load),
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


def _train_bandit(run: LiveRun) -> dict[str, object]:
    bandit, state, begun_with = _first_bandit(run)
    warm_up(run.task)
    folder = run.open_folder()
    log = DecodedLog(folder / DECODED)
    log.forget_from(state.next_request)
    run.console.write(run.task.describe())
    run.console.write(
        f"{run.name}: {run.live.requests} requests, beginning with {begun_with}; run folder {folder.path}"
    )
    keep = partial(save_controller, folder.path, run.name, run.agent)

    def save(learned: Bandit, so_far: StreamState) -> None:
        keep(learned)
        save_stream(folder / CHECKPOINT, run.name, learned, so_far)

    if not run.resumes:
        save(bandit, state)
    purge_step = state.num_steps + 1 if run.resumes else None
    with run.watched(folder, partial(keep, bandit), purge_step) as (request, writer):
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
        return run.finish(folder, state.recent, state.num_steps, log, request, writer)


def _first_bandit(run: LiveRun) -> tuple[Bandit, StreamState, str]:
    """The bandit that learning begins with, the stream's state, and where they come from, for the user."""
    settings, task = run.settings, run.task
    if settings.resume is not None:
        bandit, state = load_stream(Path(settings.resume) / CHECKPOINT, run.name, run.agent)
        return bandit, state, f"request {state.next_request} of the stream"
    if run.source is not None:
        bandit = start_bandit(run.name, run.agent, run.source, task.cost, task.compression, settings.seed)
        return bandit, StreamState(), f"what {run.source} has learned"
    # Recordings say how observations scale; what a request holds is learned live.
    train, _ = load_splits(settings.data)
    if task.compression in train.compressions:
        train = train.select(compressions=(task.compression,))
    begun = begin_learner(run.name, run.agent, TrainingData(train=train, cost=task.cost, seed=settings.seed))
    assert isinstance(begun, Bandit)
    return begun, StreamState(), "nothing"


def _train_learner(run: LiveRun) -> dict[str, object]:
    log = DecodedLog()
    env = make_live_environment(run.task, run.settings)
    learner = LiveLearner(run.name, run.agent, run.settings, env, log, source=run.source)
    warm_up(run.task)
    folder = run.open_folder()
    log.path = folder / DECODED
    run.console.write(run.task.describe())
    learner.begin(folder if run.resumes else None)
    run.console.write(
        f"{run.name}: {run.agent.total_steps:,} environment steps, beginning with {learner.begun_with}; "
        f"run folder {folder.path}"
    )
    provenance: dict[str, str | int | float] = {
        "agent": run.name,
        "cost": run.task.cost.name,
        "cost_sha256": run.task.cost.sha256,
        "init_from": run.settings.init_from or "",
        "live": json.dumps(run.task.facts, sort_keys=True),
        "seed": run.settings.seed,
    }
    purge_step = learner.done + 1 if run.resumes else None
    # The monitor has saved what the last update left.
    with run.watched(folder, lambda: None, purge_step) as (request, writer):
        learner.learn(folder, writer, run.console, request, provenance)
        return run.finish(folder, learner.recent, learner.done, log, request, writer)
