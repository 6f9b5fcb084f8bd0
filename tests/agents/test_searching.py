# SPDX-License-Identifier: Apache-2.0
"""Searches: what is drawn, that trials are judged, given up and gone on with, and how the winner is chosen."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import train as program
from agents.building import build_settings
from agents.searching import trials
from agents.searching.search import SHIPPED, run_search
from agents.searching.settings import SearchSettings, suggest
from agents.studies.running import Job
from agents.training.run_folder import EVAL_COLUMNS
from agents.training.task import load_task
from agents.training.validation import Validator
from speckv.commands.app import CONFIGS, compose_checked
from speckv.errors import ConfigError
from tests.fakes_runs import CapturedConsole, save_toy, toy_settings

optuna = pytest.importorskip("optuna", reason="needs Optuna (the extra tune)")

SEARCHES = sorted(p.stem for p in (CONFIGS / "tune").glob("*.yaml"))


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_composes_and_what_it_draws_is_a_command_line(name: str) -> None:
    settings = program.settings_from(compose_checked(program.NAME, [f"tune={name}"]))
    assert settings.search is not None
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(3):
        told = suggest(study.ask(), settings.search.space)
        assert len(told) == len(settings.search.space)
        program.settings_from(compose_checked(program.NAME, [f"tune={name}", *told, "search=null"]))


def test_values_are_drawn_from_ranges_and_choices() -> None:
    space = {"a": {"low": 1e-4, "high": 1e-2, "log": True}, "b": {"low": 2, "high": 8, "step": 2}}
    space["c"] = {"choices": [[32, 32], [64]]}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = [dict(o.split("=") for o in suggest(study.ask(), space)) for _ in range(30)]
    assert all(1e-4 <= float(told["a"]) <= 1e-2 for told in seen)
    assert sum(float(told["a"]) < 1e-3 for told in seen) > 8  # by the logarithm, half of them are
    assert {told["b"] for told in seen} == {"2", "4", "6", "8"}
    assert {told["c"] for told in seen} == {"[32,32]", "[64]"}


@pytest.mark.parametrize(
    "values", [{"low": 2, "high": 1}, {"low": 1}, {"choices": []}, 3, {"low": 0, "high": 1, "odd": 2}]
)
def test_a_space_that_makes_no_sense_is_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match=r"search\.space\.agent\.gamma"):
        build_settings(SearchSettings, {"name": "toy", "space": {"agent.gamma": values}})


def test_a_search_finds_the_better_values_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    traces, cost = save_toy(tmp_path)
    overrides = [
        f"data.traces={traces}",
        "data.validation_fraction=0.3",
        f"cost.table={cost}",
        "agent=fixed",
        "agent.gamma=16",  # as bad as can be, so that what is found is better
        "eval.num_resamples=20",
    ]
    settings = program.settings_from(compose_checked(program.NAME, overrides))
    space = {"agent.gamma": {"low": 0, "high": 16}}
    search = SearchSettings(name="toy", space=space, trials=4, warm_up=4, top=1, final_seeds=(5,))
    settings = replace(settings, search=search, output=str(tmp_path / "search"), processes=2)
    record = run_search(settings, CapturedConsole(), overrides=overrides)
    trials = record["trials"]
    assert [t["state"] for t in trials] == ["complete"] * 4
    best = max(trials, key=lambda t: t["vs_best_fixed_on_validation"])
    assert record["winner"] == f"trial {best['number']}"
    assert record["winner_overrides"] == best["overrides"]
    assert set(record["final_on_validation"]) == {SHIPPED, record["winner"]}
    assert record["final_on_validation"][SHIPPED] < record["final_on_validation"][record["winner"]]
    folder = tmp_path / "search"
    assert not list((folder / "trials").glob("*/evaluation"))  # test prompts stay unseen while it searches
    assert "gamma:" in (folder / "winner.yaml").read_text(encoding="utf-8")
    assert json.loads((folder / "search.json").read_text(encoding="utf-8"))["winner"] == record["winner"]

    more = replace(settings, search=replace(search, trials=5))
    console = CapturedConsole()
    longer = run_search(more, console, overrides=overrides)
    assert "4 of 5 trials are there already" in console.text
    assert longer["trials"][:4] == trials


def test_a_trial_that_fails_is_told_and_the_search_goes_on(tmp_path: Path) -> None:
    traces, cost = save_toy(tmp_path)
    overrides = [f"data.traces={traces}", "data.validation_fraction=0.3", f"cost.table={cost}"]
    overrides += ["agent=fixed", "agent.gamma=2", "eval.num_resamples=20"]
    settings = program.settings_from(compose_checked(program.NAME, overrides))
    search = SearchSettings(
        name="toy", space={"agent.gamma": {"choices": [-5, 3]}}, trials=6, warm_up=6, top=1, final_seeds=(5,)
    )
    settings = replace(settings, search=search, output=str(tmp_path / "search"), processes=2)
    console = CapturedConsole()
    record = run_search(settings, console, overrides=overrides)
    assert {t["state"] for t in record["trials"]} == {"complete", "fail"}
    assert "failed:" in console.text


def toy_validator(folder: Path) -> Validator:
    settings = toy_settings(folder, folder / "out")
    task = load_task(settings.data, settings.cost)
    return Validator(task.validation, task.learning_cost, task.validation_gammas)


def rows_of(validator: Validator, step: int, slower: float) -> list[str]:
    """Rows of `eval.csv` by a run that takes so many times as long as the best fixed gamma."""
    grid, seconds = validator.grid, (validator.best_fixed.seconds * slower).tolist()
    return [
        f"{step},{grid.prompt_ids[row]},code,{grid.compressions[column]},10,{seconds[row][column]!r},5,5,5,5\n"
        for row, column in zip(grid.rows.tolist(), grid.columns.tolist(), strict=True)
    ]


LEARNER = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True)
for block in sys.argv[3:]:
    with (folder / "eval.csv").open("a") as file:
        file.write(block)
time.sleep(float(sys.argv[2]))
"""
"""Writes what a learner would, block by block, and then takes its time."""


def test_a_trial_that_lags_is_given_up_and_the_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validator = toy_validator(tmp_path)

    def begin(job: Job) -> subprocess.Popen[bytes]:
        lags = job.arm == "trial 1"
        rows = [",".join(EVAL_COLUMNS) + "\n"]
        rows += rows_of(validator, 0, 2.0) + rows_of(validator, 100, 1.5 if lags else 0.8)
        return subprocess.Popen([sys.executable, "-c", LEARNER, str(job.folder), "60" if lags else "0", "".join(rows)])

    monkeypatch.setattr(trials, "begin", begin)
    search = SearchSettings(name="toy", space={"agent.gamma": {"low": 0, "high": 16}}, trials=3, warm_up=1)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=1),
    )
    console = CapturedConsole()

    def job(number: int, told: list[str]) -> Job:
        return Job(arm=f"trial {number}", seed=0, overrides=tuple(told), folder=tmp_path / "trials" / str(number))

    trials.run_trials(study, search, job, validator, processes=1, console=console)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert [t.value for t in study.trials] == pytest.approx([1 / 0.8, 1 / 1.5, 1 / 0.8])
    assert "given up at 0.6667" in console.text
