# SPDX-License-Identifier: Apache-2.0
"""Searches: what is drawn, that trials are judged, given up and gone on with, and how the winner is chosen."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from speckv.agents.building import build_settings
from speckv.agents.runs import trials
from speckv.agents.runs.child_runs import ChildRun
from speckv.agents.runs.run_folder import EVAL_COLUMNS
from speckv.agents.runs.search import SHIPPED, best_trials, run_search
from speckv.agents.runs.settings import SearchSettings
from speckv.agents.runs.task import Validator, load_task
from speckv.agents.runs.trials import open_study, suggest
from speckv.commands import train as program
from speckv.commands.app import CONFIGS, compose_checked
from speckv.errors import ConfigError
from tests.fakes_runs import CapturedConsole, save_toy, start_here, toy_settings

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
    "values",
    [
        {"low": 2, "high": 1},
        {"low": 1},
        {"choices": []},
        3,
        {"low": 0, "high": 1, "odd": 2},
        {"low": "a", "high": "b"},
        {"low": 0.0, "high": 1.0, "log": True},
        {"low": 1, "high": 8, "log": True, "step": 2},
        {"low": 1, "high": 8, "step": 0.5},
        {"low": 1, "high": 8, "step": 0},
    ],
)
def test_a_space_that_makes_no_sense_is_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match=r"search\.space\.agent\.gamma"):
        build_settings(SearchSettings, {"name": "toy", "trials": 1, "space": {"agent.gamma": values}})


@pytest.mark.parametrize("key", ["cost", "data.tasks", "learn.prompts", "seed", "eval.every_steps"])
def test_what_trials_are_judged_on_is_not_searched(key: str) -> None:
    with pytest.raises(ConfigError, match="leave alone what trials are judged on"):
        SearchSettings(name="toy", space={key: {"choices": [1]}}, trials=1)


def test_final_seeds_are_fresh_and_each_once(tmp_path: Path) -> None:
    space = {"agent.gamma": {"low": 0, "high": 16}}
    with pytest.raises(ConfigError, match="each once"):
        SearchSettings(name="toy", space=space, trials=1, final_seeds=(5, 5))
    settings = replace(toy_settings(tmp_path, tmp_path / "out"), seed=5)
    with pytest.raises(ConfigError, match="seeds that the search has not seen"):
        replace(settings, search=SearchSettings(name="toy", space=space, trials=1, final_seeds=(4, 5)))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child runs without a process of their own."""
    monkeypatch.setattr(ChildRun, "start", start_here)


class Drawn:
    """Draws the highest value of every range and the last of all choices."""

    def suggest_int(self, name: str, low: int, high: int, **rest: object) -> int:
        del name, low, rest
        return high

    def suggest_float(self, name: str, low: float, high: float, **rest: object) -> float:
        del name, low, rest
        return high


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"choices": [0.1, None]}, "null"),
        ({"choices": [False]}, "false"),
        ({"choices": [[0.5, None]]}, "[0.5,null]"),
        ({"choices": [0.123456]}, "0.123456"),
        ({"low": 0.9, "high": 0.99999}, "0.99999"),  # not 1, which lies outside
        ({"low": 1e-5, "high": 1.23456e-3, "log": True}, "0.00123456"),
        ({"low": 1, "high": 8}, "8"),
    ],
)
def test_what_is_told_is_what_was_drawn(values: Any, text: str) -> None:
    assert suggest(Drawn(), {"agent.x": values}) == [f"agent.x={text}"]


SPACE: dict[str, object] = {"agent.x": {"low": 0.0, "high": 1.0}}
TERMS: dict[str, object] = {"overrides": ["agent=fixed"], "seed": 0, "space": SPACE}
TOY = SearchSettings(name="toy", space=SPACE, trials=6, warm_up=6)


def test_a_search_that_goes_on_draws_other_values_than_at_first(tmp_path: Path) -> None:
    drawn = []
    for _ in range(3):
        study = open_study(TOY, tmp_path, TERMS)
        for _ in range(2):
            trial = study.ask()
            drawn += suggest(trial, TOY.space)
            study.tell(trial, 1.0)
    assert len(set(drawn)) == 6


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"space": {"agent.x": {"low": 0.0, "high": 2.0}}}, "the same space"),
        ({"overrides": ["agent=fixed", "agent.total_steps=5"]}, "the same overrides"),
        ({"seed": 1}, "the same seed"),
    ],
)
def test_a_search_does_not_go_on_on_other_terms(tmp_path: Path, change: dict[str, object], match: str) -> None:
    open_study(TOY, tmp_path, TERMS)
    open_study(replace(TOY, trials=9, top=1), tmp_path, TERMS)
    with pytest.raises(ConfigError, match=match):
        open_study(TOY, tmp_path, {**TERMS, **change})


def test_a_folder_of_another_search_is_refused(tmp_path: Path) -> None:
    open_study(TOY, tmp_path, TERMS)
    with pytest.raises(ConfigError, match=r"hold the search other, got \['toy'\]"):
        open_study(replace(TOY, name="other"), tmp_path, TERMS)
    # Its trials would count as runs of a journal that begins anew, whose numbers are the same.
    (tmp_path / "trials").mkdir()
    (tmp_path / "journal.log").unlink()
    with pytest.raises(ConfigError, match="the journal of the trials that are there"):
        open_study(TOY, tmp_path, TERMS)


def test_trials_that_were_stopped_are_tried_again_and_failed_ones_are_not(tmp_path: Path) -> None:
    study = open_study(TOY, tmp_path, TERMS)
    study.ask()  # under way when the search was killed
    stopped, failed, done = (study.ask() for _ in range(3))
    study.tell(stopped, state=optuna.trial.TrialState.FAIL)
    failed.set_user_attr("said", "speckv: out of range")
    study.tell(failed, state=optuna.trial.TrialState.FAIL)
    study.tell(done, 1.0)
    again = open_study(TOY, tmp_path, TERMS)
    assert [t.state.name for t in again.trials] == ["FAIL", "FAIL", "FAIL", "COMPLETE"]
    assert trials.num_tried(again) == 2


def test_the_best_trials_differ_in_what_they_tried() -> None:
    study = optuna.create_study(direction="maximize")
    for value, gamma in ((1.0, 1), (1.2, 2), (1.2, 2), (1.1, 3), (1.2, 2)):
        study.add_trial(optuna.trial.create_trial(value=value, user_attrs={"overrides": [f"agent.gamma={gamma}"]}))
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    assert [t.user_attrs["overrides"] for t in best_trials(study, 2)] == [["agent.gamma=2"], ["agent.gamma=3"]]


def test_a_search_without_a_trial_that_finished_says_so_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def start(run: ChildRun) -> subprocess.Popen[bytes]:
        begun.append(run.arm)
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        run.folder.with_name(f"{run.folder.name}.log.txt").write_text("speckv: no memory", encoding="utf-8")
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(2)"])

    monkeypatch.setattr(ChildRun, "start", start)
    search = SearchSettings(name="toy", space={"agent.gamma": {"low": 0, "high": 16}}, trials=2)
    settings = replace(toy_settings(tmp_path, tmp_path / "search"), search=search, processes=2)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"a trial of toy to finish, got none: .*trials hold the errors"):
            run_search(settings, CapturedConsole(), overrides=[])
    assert begun == ["trial 0", "trial 1"]


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
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
    longer = run_search(more, console, overrides=[*overrides, "search.trials=5"])
    assert "5 trials, 4 of them finished before" in console.text
    assert longer["trials"][:4] == trials
    command = json.loads((folder / "final" / "study.json").read_text(encoding="utf-8"))["command"]
    assert command.endswith(" search.trials=5")  # as it was typed, not as the runs of the comparison are told


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
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

    def start(run: ChildRun) -> subprocess.Popen[bytes]:
        lags = run.arm == "trial 1"
        rows = [",".join(EVAL_COLUMNS) + "\n"]
        rows += rows_of(validator, 0, 2.0) + rows_of(validator, 100, 1.5 if lags else 0.8)
        return subprocess.Popen([sys.executable, "-c", LEARNER, str(run.folder), "60" if lags else "0", "".join(rows)])

    monkeypatch.setattr(ChildRun, "start", start)
    search = SearchSettings(name="toy", space={"agent.gamma": {"low": 0, "high": 16}}, trials=3, warm_up=1)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=1),
    )
    console = CapturedConsole()

    def make_run(number: int, told: list[str]) -> ChildRun:
        return ChildRun(arm=f"trial {number}", seed=0, overrides=tuple(told), folder=tmp_path / "trials" / str(number))

    trials.run_trials(study, search, make_run, validator, processes=1, console=console)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert [t.value for t in study.trials] == pytest.approx([1 / 0.8, 1 / 1.5, 1 / 0.8])
    assert "given up at 0.6667" in console.text
