# SPDX-License-Identifier: Apache-2.0
"""A search from its settings to its record: trials, then the best of them and what is shipped on fresh seeds.

Trials are judged on validation prompts, as checkpoints are. The best of many is the best by luck too, so the first few
are trained again with seeds that the search has not seen, beside the settings that are shipped, and the winner is the
one that does best on validation prompts then. Test prompts are replayed at the very end, to report and not to choose.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from agents.console import Console
from agents.searching.settings import SearchSettings
from agents.searching.trials import run_trials
from agents.settings import TrainSettings
from agents.studies.running import Job
from agents.studies.settings import StudySettings
from agents.studies.study import plan, run_study, shared_overrides
from agents.training.run_folder import made
from agents.training.task import load_task
from agents.training.validation import Validator
from speckv.errors import ConfigError
from speckv.evaluation.curves import EVAL
from speckv.evaluation.results import rounded
from speckv.files import canonical_json, write_atomically

JOURNAL, RECORD, WINNER = "journal.log", "search.json", "winner.yaml"
SHIPPED = "as shipped"
FORMAT_VERSION = 1


def run_search(settings: TrainSettings, console: Console, *, overrides: Sequence[str]) -> dict[str, Any]:
    """Searches, or goes on with a search that was stopped.

    Args:
        settings: Checked; `search` says what to try.
        console: Takes what the user sees.
        overrides: What was set on the command line.

    Returns:
        The record, as it is written.

    Raises:
        ConfigError: if Optuna is not installed.
        SpecKVError: if a run of the final comparison fails.
    """
    search = settings.search
    assert search is not None
    folder = Path(settings.output) if settings.output else Path(settings.runs_dir) / search.name
    task = load_task(settings.data, settings.cost, settings.learn)
    validator = Validator(task.validation, task.learning_cost, task.validation_gammas)
    study = _open(search, folder, settings.seed)
    console.write(f"{search.name}: {len(study.trials)} of {search.trials} trials are there already")

    def job(number: int, told: list[str]) -> Job:
        own = (*shared_overrides(overrides), *told, "search=null", "eval.on_test=false", f"seed={settings.seed}")
        return Job(arm=f"trial {number}", seed=settings.seed, overrides=own, folder=folder / "trials" / f"{number:04d}")

    processes = settings.processes or os.cpu_count() or 1
    run_trials(study, search, job, validator, processes=processes, console=console)
    best = _best(study, search.top)
    if not best:
        raise ConfigError(f"Expected a trial of {search.name} to finish, got none: see {folder / 'trials'}.")
    arms: dict[str, object] = {SHIPPED: [], **{f"trial {t.number}": t.user_attrs["overrides"] for t in best}}
    final = StudySettings(
        name=f"{search.name}-final",
        question=f"Are the best of {len(study.trials)} trials better than what is shipped, on fresh seeds?",
        arms=arms,
        seeds=search.final_seeds,
    )
    again = replace(settings, search=None, study=final, seeds=None, output=str(folder / "final"))
    run_study(again, console, overrides=[*overrides, "search=null"])
    record = _record(search, study, final, folder, validator)
    record |= {"cost": {"name": task.cost.name, "sha256": task.cost_sha256}, "traces_sha256": task.train.sha256}
    write_atomically(folder / RECORD, canonical_json(record))
    write_atomically(folder / WINNER, _experiment(record))
    console.write(f"best on validation prompts, fresh seeds: {record['winner']}; record in {folder / RECORD}")
    return record


def _open(search: SearchSettings, folder: Path, seed: int) -> Any:
    """Opens the journal; a trial that was under way when the search was stopped counts as failed."""
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise ConfigError('Expected Optuna for a search, found none: pip install -e ".[tune]".') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    journal = JournalFileBackend(str(folder / JOURNAL))
    study = optuna.create_study(
        study_name=search.name,
        storage=optuna.storages.JournalStorage(journal),
        # Trials that run at once are not to try the same: each counts as bad until it is told.
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=search.warm_up, constant_liar=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=search.warm_up),
        direction="maximize",
        load_if_exists=True,
    )
    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _best(study: Any, count: int) -> list[Any]:
    done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    return sorted(done, key=lambda trial: -trial.value)[:count]


def _record(
    search: SearchSettings, study: Any, final: StudySettings, folder: Path, validator: Validator
) -> dict[str, Any]:
    validation: dict[str, list[float]] = {}
    for job in plan(final, final.seeds, [], folder / "final"):
        points = validator.read_points(job.folder / EVAL)
        validation.setdefault(job.arm, []).append(max(point.mean for point in points))
    means = {arm: sum(values) / len(values) for arm, values in validation.items()}
    winner = max(means, key=lambda arm: means[arm])
    return {
        "format_version": FORMAT_VERSION,
        "search": asdict(search),
        "trials": [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "overrides": trial.user_attrs.get("overrides"),
                "vs_best_fixed_on_validation": rounded(trial.value),
            }
            for trial in study.trials
        ],
        "final_on_validation": {arm: [rounded(v) for v in values] for arm, values in validation.items()},
        "winner": winner,
        "winner_overrides": list(final.overrides(winner)),
        "made": made(),
    }


def _experiment(record: dict[str, Any]) -> str:
    """The winner as a config that `experiment=` takes once it lies in `configs/experiment`."""
    lines = ["# @package _global_", f"# Found by {record['search']['name']}: {record['winner']}."]
    groups: dict[str, list[str]] = {}
    for override in record["winner_overrides"]:
        key, _, value = override.partition("=")
        group, _, name = key.partition(".")
        groups.setdefault(group, []).append(f"  {name}: {value}")
    for group, settings in groups.items():
        lines += [f"{group}:", *settings]
    return "\n".join(lines) + "\n"
