# SPDX-License-Identifier: Apache-2.0
"""A search from its settings to its record: trials, then the best of them and what is shipped on fresh seeds.

Trials are judged on validation prompts, as checkpoints are. The best of many is the best by luck too, so the first few
are trained again with seeds that the search has not seen, beside the settings that are shipped, and the winner is the
one that does best on validation prompts then. Test prompts are replayed at the very end, to report and not to choose.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from agents.runs.console import Console
from agents.runs.run_folder import provenance
from agents.runs.task import load_task
from agents.runs.validation import Validator
from agents.searching.journal import FINAL, TRIALS, open_study
from agents.searching.settings import SearchSettings
from agents.searching.trials import num_tried, run_trials
from agents.searching.winner import winner_config
from agents.settings import TrainSettings
from agents.studies.running import Job
from agents.studies.settings import StudySettings
from agents.studies.study import group_of, plan, run_study, shared_overrides
from speckv.cores import usable_cores
from speckv.errors import ConfigError
from speckv.evaluation.curves import EVAL
from speckv.evaluation.results import rounded
from speckv.files import canonical_json, write_atomically

RECORD, WINNER = "search.json", "winner.yaml"
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
    shared = [override for override in shared_overrides(overrides) if group_of(override) != "search"]
    ground = {"cost_sha256": task.learning_cost.sha256, "traces_sha256": task.learning.sha256}
    terms = {"overrides": sorted(shared), "seed": settings.seed, "space": dict(search.space), **ground}
    study = open_study(search, folder, terms)
    console.write(f"{search.name}: {num_tried(study)} of {search.trials} trials are there already")

    def job(number: int, told: list[str]) -> Job:
        own = (*shared, *told, "search=null", "eval.on_test=false", f"seed={settings.seed}")
        return Job(arm=f"trial {number}", seed=settings.seed, overrides=own, folder=folder / TRIALS / f"{number:04d}")

    processes = settings.processes or usable_cores()
    run_trials(study, search, job, validator, processes=processes, console=console)
    best = best_trials(study, search.top)
    if not best:
        raise ConfigError(
            f"Expected a trial of {search.name} to finish, got none: {folder / TRIALS} says why. Mend that and name "
            "another output."
        )
    arms: dict[str, object] = {SHIPPED: [], **{f"trial {t.number}": t.user_attrs["overrides"] for t in best}}
    final = StudySettings(
        name=f"{search.name}-final",
        question=f"Are the best of {len(study.trials)} trials better than what is shipped, on fresh seeds?",
        arms=arms,
        seeds=search.final_seeds,
    )
    again = replace(settings, search=None, study=final, seeds=None, output=str(folder / FINAL))
    run_study(again, console, overrides=[*shared, "search=null"], typed=overrides)
    record = _record(search, study, final, folder, validator)
    record |= {"cost": {"name": task.cost.name, "sha256": task.cost_sha256}, "traces_sha256": task.train.sha256}
    write_atomically(folder / RECORD, canonical_json(record))
    write_atomically(folder / WINNER, winner_config(search.name, record["winner"], record["winner_overrides"], shared))
    console.write(f"best on validation prompts, fresh seeds: {record['winner']}; record in {folder / RECORD}")
    return record


def best_trials(study: Any, count: int) -> list[Any]:
    """The best trials that differ in what they tried: equal ones would be trained again for nothing."""
    done = sorted((t for t in study.trials if t.state.name == "COMPLETE"), key=lambda trial: -trial.value)
    best: dict[tuple[str, ...], Any] = {}
    for trial in done:
        best.setdefault(tuple(trial.user_attrs["overrides"]), trial)
    return list(best.values())[:count]


def _record(
    search: SearchSettings, study: Any, final: StudySettings, folder: Path, validator: Validator
) -> dict[str, Any]:
    validation: dict[str, list[float]] = {}
    for job in plan(final, final.seeds, [], folder / FINAL):
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
        "made": provenance(),
    }
