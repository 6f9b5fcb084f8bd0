# SPDX-License-Identifier: Apache-2.0
"""A study: trains every arm with every seed, or resumes them, then compares the arms."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speckv.agents.runs.child_runs import ChildRun, run_all, shared_overrides
from speckv.agents.runs.console import Console
from speckv.agents.runs.planning import describe_runs, list_runs
from speckv.agents.runs.run_folder import provenance
from speckv.agents.runs.settings import StudySettings, TrainSettings
from speckv.agents.runs.study_results import ArmOutcome, draw, measure_arms, read_sums, render
from speckv.agents.runs.task import load_task
from speckv.cores import usable_cores
from speckv.cost import describe_clock
from speckv.evaluation.report import save_figure
from speckv.evaluation.results import interval_json, rounded
from speckv.files import canonical_json, write_atomically

OUTCOME, TABLE, PICTURE = "study.json", "study.txt", "study.png"
FORMAT_VERSION = 1


def run_study(
    settings: TrainSettings, console: Console, *, overrides: Sequence[str], typed: Sequence[str] | None = None
) -> tuple[ArmOutcome, ...]:
    """Trains and compares all arms, keeping finished runs if one fails; `typed` is the command line if it differs."""
    study, folder = _study(settings), _folder(settings)
    task = load_task(settings.data, settings.cost, settings.learn)  # refuses what is wrong for all arms before any run
    runs = runs_of(settings, overrides)
    console.write(f"{study.name}: {study.question}")
    run_all(runs, min(settings.processes or usable_cores(), len(runs)), console)
    outcomes = measure_arms(read_sums(runs), num_resamples=settings.eval.num_resamples, seed=settings.seed)
    clock = describe_clock(task.cost.kind, {name: task.cost.checks[name] for name in task.test.compressions})
    facts = {
        "format_version": FORMAT_VERSION,
        "study": study.name,
        "question": study.question,
        "command": " ".join(["speckv train", *_lasting(overrides if typed is None else typed)]),
        "arms": {arm: list(study.overrides(arm)) for arm in study.arms},
        "seeds": list(settings.all_seeds),
        "cost": {"name": task.cost.name, "sha256": task.cost.sha256, "clock": clock},
        "traces": {"name": Path(task.traces_name).name, "sha256": task.test.sha256},
        "test_prompts": len(task.test.prompt_ids),
        "best_fixed_gammas": task.best_fixed_gammas,
        "num_resamples": settings.eval.num_resamples,
        "outcomes": [_record(outcome) for outcome in outcomes],
        "made": provenance(),
    }
    write_atomically(folder / OUTCOME, canonical_json(facts))
    table = render(facts)
    write_atomically(folder / TABLE, table)
    save_figure(draw(facts), folder / PICTURE)
    console.write(table)
    console.write(f"saved to {folder}")
    return outcomes


def describe_study(settings: TrainSettings, overrides: Sequence[str]) -> str:
    """The runs of a study that `run_study` would train, without writing anything."""
    study, runs = _study(settings), runs_of(settings, overrides)
    for run in runs:
        run.require_same_overrides()
    processes = min(settings.processes or usable_cores(), len(runs))
    return f"{study.name}: {study.question}\n{describe_runs(runs, processes)}\n\n{list_runs(runs)}"


def runs_of(settings: TrainSettings, overrides: Sequence[str]) -> list[ChildRun]:
    """The runs of a study."""
    return plan(_study(settings), settings.all_seeds, overrides, _folder(settings))


def plan(study: StudySettings, seeds: Sequence[int], overrides: Sequence[str], folder: Path) -> list[ChildRun]:
    """A run for each arm and seed, seeds of an arm in sequence."""
    return [
        ChildRun(
            arm=arm,
            seed=seed,
            overrides=(*_LEAN, *shared_overrides(overrides), *study.overrides(arm), *_NOT_A_STUDY, f"seed={seed}"),
            folder=folder / study.folder_of(arm) / f"seed{seed}",
        )
        for arm in study.arms
        for seed in seeds
    ]


_LEAN = ("eval.num_resamples=1000",)
"""Few resamples by default: a run's own table is a by-product here, and can take longer than the run."""
_NOT_A_STUDY = ("study=null", "seeds=null")


def _folder(settings: TrainSettings) -> Path:
    return Path(settings.output) if settings.output else Path(settings.runs_dir) / _study(settings).name


def _study(settings: TrainSettings) -> StudySettings:
    # With `seeds` alone, a study of one arm.
    if settings.study is not None:
        return settings.study
    name = str(settings.agent["name"])
    seeds = settings.all_seeds
    return StudySettings(
        name=f"{name}-{Path(settings.cost.table).stem}-{len(seeds)}-seeds",
        question=f"How does {name} do, over {len(seeds)} seeds?",
        arms={name: []},
    )


def _lasting(overrides: Sequence[str]) -> list[str]:
    return [*shared_overrides(overrides), *(o for o in overrides if o.startswith(("seeds=", "study.")))]


def _record(outcome: ArmOutcome) -> Mapping[str, Any]:
    return {
        "name": outcome.name,
        "over_best_fixed": interval_json(outcome.over_best_fixed),
        "by_compression": {name: interval_json(interval) for name, interval in outcome.by_compression.items()},
        "by_seed": [rounded(value) for value in outcome.by_seed],
        "over_reference": interval_json(outcome.over_reference) if outcome.over_reference else None,
        "claim": outcome.verdict.outcome if outcome.verdict else None,
        "p_holm": rounded(outcome.verdict.p_holm) if outcome.verdict else None,
    }
