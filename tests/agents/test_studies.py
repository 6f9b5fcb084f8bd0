# SPDX-License-Identifier: Apache-2.0
"""Studies: what is run, that it goes on where it stopped, and what it comes to."""

import datetime
import json
import os
import re
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text

from speckv.agents.building import build_settings
from speckv.agents.runs import child_runs, run_folder, study
from speckv.agents.runs.child_runs import ChildRun
from speckv.agents.runs.planning import estimated_s
from speckv.agents.runs.run_folder import RunFolder
from speckv.agents.runs.settings import LearnSettings, StudySettings, TrainSettings
from speckv.agents.runs.study import describe_study, plan, run_study
from speckv.agents.runs.study_results import StudySums, draw, measure_arms
from speckv.agents.runs.task import first_of_tasks, load_task
from speckv.commands import train as program
from speckv.commands.app import CONFIGS, compose_checked
from speckv.errors import ConfigError, SpecKVError
from speckv.evaluation.entrants import References
from speckv.evaluation.metrics import Grid, Sums
from tests.fakes_runs import CapturedConsole, save_toy, start_here, toy_settings, toy_traces
from tests.fakes_settings import shipped

STUDIES = sorted(
    str(p.relative_to(CONFIGS / "experiment").with_suffix(""))
    for folder in ("ablation", "generalisation")
    for p in (CONFIGS / "experiment" / folder).glob("*.yaml")
)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child runs without a process of their own."""
    monkeypatch.setattr(ChildRun, "start", start_here)


def toy_study(
    folder: Path, arms: dict[str, object], seeds: tuple[int, ...] = (0, 1)
) -> tuple[TrainSettings, list[str]]:
    """Settings of a study on toy recordings, and the overrides that every run is told."""
    traces, cost = save_toy(folder)
    overrides = [
        f"data.traces={traces}",
        "data.validation_fraction=0.3",
        f"cost.table={cost}",
        "agent=fixed",
        "agent.gamma=1",
        "eval.num_resamples=50",
    ]
    settings = replace(
        toy_settings(folder, folder / "study"),
        study=StudySettings(name="toy", question="Which constant?", arms=arms, seeds=seeds),
        processes=2,
    )
    return settings, overrides


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_composes_and_every_arm_is_a_command_line(name: str) -> None:
    settings = program.settings_from(compose_checked(program.NAME, [f"experiment={name}"]))
    assert settings.study is not None
    assert len(settings.study.arms) > 1
    assert settings.study.name == name.replace("/", "-").replace("_", "-")  # where `make ablations` looks
    seen = set()
    for job in plan(settings.study, [0], [f"experiment={name}"], Path("study")):
        run = program.settings_from(compose_checked(program.NAME, list(job.overrides)))
        assert not run.is_study
        seen.add(repr(run))
    assert len(seen) == len(settings.study.arms)


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_study_runs_every_arm_and_seed_and_says_what_came_of_it(tmp_path: Path) -> None:
    settings, overrides = toy_study(tmp_path, {"one": [], "three": ["agent.gamma=3"]}, seeds=(0, 4))
    console = CapturedConsole()
    outcomes = run_study(settings, console, overrides=[*overrides, "study.seeds=[0,4]", "processes=2"])
    folder = tmp_path / "study"
    for run in ("one/seed0", "one/seed4", "three/seed0", "three/seed4"):
        assert (folder / run / "evaluation" / "results.json").is_file()
    record = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    assert [o["name"] for o in record["outcomes"]] == ["one", "three"]
    assert record["outcomes"][0]["over_reference"] is None
    rows = json.loads((folder / "three/seed0/evaluation/results.json").read_text(encoding="utf-8"))["groups"]
    row = next(
        r
        for g in rows
        if (g["compression"], g["task"]) == ("all", "all")
        for r in g["rows"]
        if r["controller"] == "fixed-3"
    )
    expected = row["geomean_speedup_vs_best_fixed"]["estimate"]
    assert outcomes[1].over_best_fixed.estimate == pytest.approx(expected, rel=1e-4)
    assert outcomes[1].by_seed == pytest.approx((expected, expected), rel=1e-4)
    assert "Which constant?" in console.text
    assert (folder / "study.png").is_file()

    assert "the time is estimated when the first one ends" in console.text
    assert re.search(r"one, seed 0: done, 3 to go, about \d+ s left", console.text)

    again = CapturedConsole()
    run_study(settings, again, overrides=overrides)
    assert "4 runs, 4 of them finished before" in again.text
    assert "no run is left" in again.text
    assert describe_study(settings, overrides).count("finished  ") == 4


def finished_run(folder: Path, arm: str, seconds: float) -> ChildRun:
    run = ChildRun(arm=arm, seed=0, overrides=(), folder=folder / arm)
    evaluated = run.folder / "evaluation" / "per_prompt.csv"
    evaluated.parent.mkdir(parents=True)
    evaluated.touch()
    (run.folder / "run.json").write_text('{"started": "2026-01-01T00:00:00+00:00"}', encoding="utf-8")
    end = datetime.datetime.fromisoformat("2026-01-01T00:00:00+00:00").timestamp() + seconds
    os.utime(evaluated, (end, end))
    return run


def test_the_time_of_a_study_is_estimated_from_its_finished_runs(tmp_path: Path) -> None:
    finished = [finished_run(tmp_path, "slow", 100.0), finished_run(tmp_path, "fast", 10.0)]
    left = [
        ChildRun(arm=arm, seed=1, overrides=(), folder=tmp_path / "new") for arm in ("slow", "slow", "fast", "other")
    ]
    # 100 + 100 + 10, and the median of all for an arm without a finished run: 55.
    assert estimated_s(left, finished, 1) == 265.0
    assert estimated_s(left, finished, 8) == 100.0  # the longest run takes its time
    assert estimated_s(left, [], 2) is None


def test_a_dry_run_lists_the_runs_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, overrides = toy_study(tmp_path, {"one": []})
    before = sorted(tmp_path.rglob("*"))
    arguments = [*overrides, "seeds=3", f"output={tmp_path / 'out'}", "dry_run=true"]
    program.run(compose_checked(program.NAME, arguments), arguments)
    text = capsys.readouterr().out
    assert "3 runs, 0 of them finished before" in text
    assert [f"seed{seed} " in text for seed in range(4)] == [True, True, True, False]
    assert "agent.gamma=1" in text
    assert "dry_run=" not in text
    for choice, shown in (("tune=ppo", "40 trials, 0 of them begun before"), ("agent=ppo", "1 run: ppo")):
        program.run(compose_checked(program.NAME, [choice, f"runs_dir={tmp_path}", "dry_run=true"]), [choice])
        assert shown in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("processes", "expected"), [(None, 1), (2, 2)])
def test_runs_at_once_are_as_many_as_the_usable_cores(
    processes: int | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Affinity allows one core; a number of processes that is set explicitly is kept."""
    started: list[int] = []
    settings = toy_settings(tmp_path, tmp_path / "out", agent={"name": "fixed", "gamma": 4})
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})  # noqa: ARG005
    monkeypatch.setattr(study, "run_all", lambda jobs, processes, console: started.append(processes))  # noqa: ARG005
    with suppress(OSError, SpecKVError):  # nothing was trained, so there is nothing to compare
        run_study(
            replace(settings, seeds=3, processes=processes), CapturedConsole(), overrides=["agent=fixed", "seeds=3"]
        )
    assert started == [expected]


@pytest.mark.usefixtures("in_process")
def test_a_folder_of_another_study_is_refused(tmp_path: Path) -> None:
    settings, overrides = toy_study(tmp_path, {"one": []}, seeds=(0,))
    run_study(settings, CapturedConsole(), overrides=overrides)
    with pytest.raises(ConfigError, match="Name another output"):
        run_study(settings, CapturedConsole(), overrides=[*overrides, "eval.num_resamples=60"])


@pytest.mark.slow
def test_a_run_that_fails_is_told_with_what_it_said(tmp_path: Path) -> None:
    settings, overrides = toy_study(tmp_path, {"one": [], "broken": ["agent.gamma=-3"]}, seeds=(0,))
    settings = replace(settings, processes=1)
    with pytest.raises(SpecKVError, match=r"broken, seed 0.*Expected gamma from 0 to 16"):
        run_study(settings, CapturedConsole(), overrides=overrides)
    assert (tmp_path / "study" / "one" / "seed0" / "evaluation").is_dir()


NEW_RUN = """
import pathlib, sys
folder = pathlib.Path(sys.argv[-1].removeprefix("output="))
folder.mkdir()
(folder / "evaluation").mkdir()
(folder / "evaluation" / "per_prompt.csv").touch()
"""
"""A program that leaves what a finished run does, in a folder that must be new."""


def test_a_run_that_left_nothing_to_go_on_from_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it was stopped: in its first file, between two of them, or later."""
    settings, overrides = toy_study(tmp_path, {"one": [], "two": [], "three": []}, seeds=(0,))
    assert settings.study is not None
    one, two, three = plan(settings.study, [0], overrides, tmp_path / "study")
    for job in (one, two, three):
        job.folder.mkdir(parents=True)
    (one.folder / ".overrides.txt.123.partial").write_text("agent", encoding="utf-8")
    for job, files in ((two, 1), (three, 3)):
        written: list[Path] = []

        def stopped(path: Path, content: str, files: int = files, written: list[Path] = written) -> None:
            if len(written) == files:
                raise KeyboardInterrupt
            written.append(path)
            path.write_text(content, encoding="utf-8")

        monkeypatch.setattr(run_folder, "write_atomically", stopped)
        with suppress(KeyboardInterrupt):
            RunFolder(job.folder).record_start("agent: {}\n", job.overrides, {})
        assert len(list(job.folder.iterdir())) == files
    trains = tmp_path / "trains.py"
    trains.write_text(NEW_RUN, encoding="utf-8")
    monkeypatch.setattr(child_runs, "PROGRAM", (sys.executable, str(trains)))
    child_runs.run_all((one, two, three), 2, CapturedConsole())
    assert all(job.finished for job in (one, two, three))
    assert not list(one.folder.glob(".*"))


def test_a_run_that_outlived_its_study_is_not_begun_a_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program_that_waits = tmp_path / "waits.py"
    program_that_waits.write_text("import time\ntime.sleep(60)\n", encoding="utf-8")
    monkeypatch.setattr(child_runs, "PROGRAM", (sys.executable, str(program_that_waits)))
    job = ChildRun(arm="a", seed=1, overrides=("agent=ppo",), folder=tmp_path / "study" / "a")
    with child_runs.terminated_on_exit([job.start()]):
        job.folder.mkdir()
        (job.folder / "overrides.txt").write_text("agent=ppo\n", encoding="utf-8")
        with pytest.raises(ConfigError, match="an earlier start left behind"):
            job.start()
        assert job.folder.is_dir()  # nothing is thrown away under its feet
    with child_runs.terminated_on_exit([job.start()]):
        assert not job.folder.exists()


def test_a_run_with_a_checkpoint_is_resumed() -> None:
    job = ChildRun(arm="a", seed=1, overrides=("agent=ppo",), folder=Path("nowhere"))
    assert job.command[-2:] == ["agent=ppo", "output=nowhere"]


def test_seeds_are_a_number_or_a_list(tmp_path: Path) -> None:
    settings = toy_settings(tmp_path, tmp_path / "out")
    assert not settings.is_study
    assert replace(settings, seeds=3).all_seeds == (0, 1, 2)
    assert replace(settings, seeds=(4, 7)).all_seeds == (4, 7)
    for wrong in ((), (1, 1), (-1,), 0):
        with pytest.raises(ConfigError, match="Expected seeds"):
            replace(settings, seeds=wrong)
    twice = StudySettings(name="toy", question="?", arms={"one": []}, seeds=(3, 3))
    with pytest.raises(ConfigError, match=r"Expected seeds each once, got \(3, 3\)"):
        replace(settings, study=twice)


@pytest.mark.parametrize(
    ("arms", "match"),
    [
        ({}, "one arm or more"),
        ({"a": "agent.gamma=4"}, "to list overrides"),
        ({"a b": [], "a-b": []}, "differ in letters or digits"),
        ({"..": []}, "differ in letters or digits"),
        ({"?": []}, "differ in letters or digits"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(arms: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build_settings(StudySettings, {"name": "toy", "question": "?", "arms": arms})


def test_names_become_folders() -> None:
    assert StudySettings.folder_of("PPO, once a step: 16") == "ppo-once-a-step-16"


def sums_of(name: str, seconds: np.ndarray) -> Sums:
    ones = np.ones_like(seconds)
    return Sums(
        name=name,
        tokens=ones,
        seconds=seconds,
        steps=ones,
        drafted=ones,
        accepted=ones,
        tested=ones,
        gammas=np.ones((*seconds.shape, 2)),
    )


def test_intervals_hold_seeds_and_prompts() -> None:
    rng = np.random.default_rng(0)
    best = rng.uniform(1, 2, (40, 2))
    rows, columns = np.divmod(np.arange(80), 2)
    grid = Grid(
        prompt_ids=tuple(f"p{n:02d}" for n in range(40)),
        tasks=("code",) * 40,
        compressions=("fp16", "nf4"),
        rows=rows,
        columns=columns,
    )
    arms = {
        "alike": tuple(sums_of("a", best * 0.8) for _ in range(3)),
        "apart": tuple(sums_of("b", best * 0.8 * f) for f in (0.9, 1.0, 1.1)),
        "slow": tuple(sums_of("c", best * f) for f in (0.99, 1.0, 1.01)),
    }
    references = References(
        autoregressive=sums_of("plain", best * 2), best_fixed=sums_of("best", best), clairvoyant=sums_of("k", best / 2)
    )
    sums = StudySums(grid=grid, references=references, arms=arms)
    first, second, third = measure_arms(sums, num_resamples=2000)
    assert first.over_best_fixed.estimate == pytest.approx(1.25)
    assert first.over_best_fixed.low == pytest.approx(1.25)  # every prompt and seed agrees
    assert first.over_reference is None
    assert first.verdict is None
    assert second.by_seed == pytest.approx((1.25 / 0.9, 1.25, 1.25 / 1.1))
    assert second.over_reference is not None
    assert second.over_reference.low is not None
    assert second.over_reference.high is not None
    assert second.over_reference.low < 0.95 < 1.05 < second.over_reference.high  # seeds alone move it
    assert second.verdict is not None
    assert second.verdict.outcome == "not distinguishable from"
    assert third.verdict is not None
    assert third.verdict.outcome == "behind"
    assert measure_arms(sums, num_resamples=50) == measure_arms(sums, num_resamples=50)


def test_learning_may_meet_something_else_than_the_test(tmp_path: Path) -> None:
    settings = toy_settings(tmp_path, tmp_path / "out")
    plain = load_task(settings.data, settings.cost)
    assert plain.learning_cost == plain.cost
    assert plain.validation_gammas == plain.best_fixed_gammas
    other = shipped(LearnSettings, compressions=("nf4",), tasks=("code", "chat"), prompts=1)
    task = load_task(settings.data, settings.cost, other)
    assert task.learning.compressions == ("nf4",)
    assert task.learning.tasks == ("chat", "code")
    assert len(task.learning.prompt_ids) == 2
    assert set(task.test.prompt_ids) == set(plain.test.prompt_ids)
    assert task.test.compressions == plain.test.compressions
    assert task.best_fixed_gammas == plain.best_fixed_gammas


def test_fewer_prompts_are_among_more() -> None:
    traces = toy_traces(48)
    few, more = (set(first_of_tasks(traces, count).prompt_ids) for count in (2, 5))
    assert len(few) == 6
    assert few < more


def test_test_prompts_are_not_learned_from(tmp_path: Path) -> None:
    settings = toy_settings(tmp_path, tmp_path / "out")
    traces = toy_traces(24)
    swapped = {"train": "test", "test": "train"}
    other = tmp_path / "swapped.parquet"
    replace(traces, sequences=tuple(replace(s, split=swapped[s.split]) for s in traces.sequences)).save(other)
    with pytest.raises(ConfigError, match="no test prompt"):
        load_task(settings.data, settings.cost, shipped(LearnSettings, traces=str(other)))


@pytest.mark.parametrize("length", [8, 150])
def test_every_word_of_the_picture_is_inside_it(length: int) -> None:
    interval = {"estimate": 1.02, "low": 1.01, "high": 1.03}
    words = ("word " * length)[:length].strip()
    outcomes = [{"name": f"{words} {row}", "over_best_fixed": interval, "by_seed": [1.01, 1.03]} for row in range(3)]
    figure = draw(
        {
            "question": f"{words}?",
            "outcomes": outcomes,
            "test_prompts": 120,
            "seeds": [0, 1],
            "cost": {"name": "cpu-2core"},
        }
    )
    figure.draw_without_rendering()
    width, height = figure.canvas.get_width_height()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    drawn = [text for text in texts if not text.get_text().replace(".", "").isdigit()]  # ticks may lie beyond the axis
    assert len(drawn) >= 5  # question, arms, caption
    for text in drawn:
        box = text.get_window_extent()
        assert (box.x0 >= 0, box.y0 >= 0, box.x1 <= width, box.y1 <= height) == (True,) * 4, text.get_text()
