# SPDX-License-Identifier: Apache-2.0
"""Search for hyper-parameters: trials, then the best trials and the shipped settings on fresh seeds.

The best of many trials is partly luck: hence the fresh seeds. Scores on validation prompts decide; test prompts are
replayed at the end, for the report only.
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from speckv.agents.runs.child_runs import ChildRun, group_of, shared_overrides
from speckv.agents.runs.console import Console
from speckv.agents.runs.run_folder import provenance
from speckv.agents.runs.settings import SearchSettings, StudySettings, TrainSettings
from speckv.agents.runs.study import plan, run_study
from speckv.agents.runs.task import Validator, load_task
from speckv.agents.runs.trials import FINAL, TRIALS, describe_left, num_tried, open_study, run_trials
from speckv.cores import usable_cores
from speckv.errors import ConfigError
from speckv.evaluation.curves import EVAL
from speckv.evaluation.results import rounded
from speckv.evaluation.text import render_table
from speckv.files import canonical_json, write_atomically

RECORD, WINNER = "search.json", "winner.yaml"
SHIPPED = "as shipped"
FORMAT_VERSION = 1
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def run_search(settings: TrainSettings, console: Console, *, overrides: Sequence[str]) -> dict[str, Any]:
    """Runs or resumes a search and returns the record that it writes.

    Raises:
        ConfigError: if Optuna is not installed, or no trial finished.
        SpecKVError: if a run of the final comparison fails.
    """
    search = settings.search
    assert search is not None
    folder = search_folder(settings)
    task = load_task(settings.data, settings.cost, settings.learn)
    validator = task.validator()
    shared = [override for override in shared_overrides(overrides) if group_of(override) != "search"]
    ground = {"cost_sha256": task.learning_cost.sha256, "traces_sha256": task.learning.sha256}
    terms = {"overrides": sorted(shared), "seed": settings.seed, "space": dict(search.space), **ground}
    study = open_study(search, folder, terms)
    processes = settings.processes or usable_cores()
    console.write(
        f"{search.name}: {search.trials} trials, {num_tried(study)} of them finished before; {processes} at once; "
        f"{describe_left(study, search.trials - num_tried(study), processes)}; then "
        f"{(search.top + 1) * len(search.final_seeds)} runs on fresh seeds"
    )

    def make_run(number: int, drawn: list[str]) -> ChildRun:
        own = (*shared, *drawn, "search=null", "eval.on_test=false", f"seed={settings.seed}")
        path = folder / TRIALS / f"{number:04d}"
        return ChildRun(arm=f"trial {number}", seed=settings.seed, overrides=own, folder=path)

    run_trials(study, search, make_run, validator, processes=processes, console=console)
    best = best_trials(study, search.top)
    if not best:
        raise ConfigError(
            f"Expected a trial of {search.name} to finish, got none: the logs in {folder / TRIALS} hold the errors. "
            "Mend the cause and name another output."
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
    record |= {"cost": {"name": task.cost.name, "sha256": task.cost.sha256}, "traces_sha256": task.train.sha256}
    write_atomically(folder / RECORD, canonical_json(record))
    write_atomically(folder / WINNER, winner_config(search.name, record["winner"], record["winner_overrides"], shared))
    console.write(f"best on validation prompts, fresh seeds: {record['winner']}; record in {folder / RECORD}")
    return record


def describe_search(settings: TrainSettings) -> str:
    """The trials and runs of a search that `run_search` would run, without writing anything."""
    search = settings.search
    assert search is not None
    folder = search_folder(settings)
    begun = len(list((folder / TRIALS).glob("*/")))
    space = [(key, str(values)) for key, values in search.space.items()]
    arms, seeds = search.top + 1, len(search.final_seeds)
    return (
        f"{search.name}: {search.trials} trials, {begun} of them begun before; "
        f"{settings.processes or usable_cores()} at once; then {arms} arms x {seeds} seeds = {arms * seeds} runs: "
        f"the best {search.top} trials and the shipped settings\nfolder: {folder}\n\n"
        f"{render_table(('setting', 'values'), space, num_left=2)}"
    )


def search_folder(settings: TrainSettings) -> Path:
    """Folder of a search."""
    assert settings.search is not None
    return Path(settings.output) if settings.output else Path(settings.runs_dir) / settings.search.name


def best_trials(study: Any, count: int) -> list[Any]:
    """The best trials whose overrides differ."""
    done = sorted((t for t in study.trials if t.state.name == "COMPLETE"), key=lambda trial: -trial.value)
    best: dict[tuple[str, ...], Any] = {}
    for trial in done:
        best.setdefault(tuple(trial.user_attrs["overrides"]), trial)
    return list(best.values())[:count]


def _record(
    search: SearchSettings, study: Any, final: StudySettings, folder: Path, validator: Validator
) -> dict[str, Any]:
    validation: dict[str, list[float]] = {}
    for run in plan(final, final.seeds, [], folder / FINAL):
        points = validator.read_points(run.folder / EVAL)
        validation.setdefault(run.arm, []).append(max(point.mean for point in points))
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


def winner_config(search: str, winner: str, overrides: Sequence[str], shared: Sequence[str]) -> str:
    """The winner's settings as a config file for `configs/experiment`; `shared` are the overrides of all trials.

    >>> print(winner_config("toy", "trial 3", ["agent.hidden=[64,64]", "reward=time", "agent.a.b=1"], ["tune=toy"]))
    # @package _global_
    # Found by toy: trial 3. The whole of it:
    # speckv train tune=toy 'agent.hidden=[64,64]' reward=time agent.a.b=1 search=null
    defaults:
      - override /reward: time
    agent:
      a:
        b: 1
      hidden: [64,64]
    <BLANKLINE>
    """
    command = shlex.join(["speckv", "train", *shared, *overrides, "search=null"])
    lines = ["# @package _global_", f"# Found by {search}: {winner}. The whole of it:", f"# {command}"]
    pairs = [(key, value) for key, _, value in (override.partition("=") for override in overrides)]
    groups = [f"  - override /{key}: {value}" for key, value in pairs if _is_group(key)]
    lines += ["defaults:", *groups] if groups else []
    above: list[str] = []
    for key, value in sorted(pair for pair in pairs if not _is_group(pair[0])):
        *parents, name = key.split(".")
        for depth, parent in enumerate(parents):
            if above[: depth + 1] != parents[: depth + 1]:
                lines.append(f"{'  ' * depth}{parent}:")
                above = parents[: depth + 1]
        above = parents
        lines.append(f"{'  ' * len(parents)}{name}: {value}")
    return "\n".join(lines) + "\n"


def _is_group(key: str) -> bool:
    return (CONFIGS / key).is_dir()
