# SPDX-License-Identifier: Apache-2.0
"""Sweeps: folders named by overrides, and one table at the end, whatever became of the jobs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from speckv.agents.runs.run_folder import LAST
from speckv.commands import train as program
from speckv.commands.app import compose_checked, first_of_sweeps, parse_overrides, prepare
from speckv.commands.sweep import SWEEP_JSON, SWEEP_TEXT, Sweep, error_file, job_name, run_sweep
from speckv.errors import ConfigError
from tests.fakes_runs import save_toy

ROOT = Path(__file__).resolve().parents[3]


def plan(*overrides: str) -> Sweep:
    config = compose_checked(program.NAME, first_of_sweeps(overrides))
    return Sweep.of(program.NAME, parse_overrides(overrides), config)


def write_results(folder: Path, estimate: float) -> None:
    interval = {"estimate": estimate, "low": estimate - 0.1, "high": estimate + 0.1}
    row = {
        "controller": "ppo",
        "throughput_tokens_per_s": 12.0,
        "speedup_vs_best_fixed": interval,
        "geomean_speedup_vs_best_fixed": interval,
    }
    groups = [{"compression": name, "task": "all", "rows": [row]} for name in ("fp16", "nf4", "all")]
    (folder / "evaluation").mkdir(parents=True)
    content = {"groups": groups, "controllers": ["ppo"], "entrants": []}
    (folder / "evaluation" / "results.json").write_text(json.dumps(content), encoding="utf-8")


def test_folders_are_named_by_what_differs_between_jobs(tmp_path: Path) -> None:
    sweep = plan("agent=ppo,dqn", "reward=time,throughput", "seed=3", f"runs_dir={tmp_path}")
    assert [job.folder.name for job in sweep.jobs] == [
        "agent=ppo,reward=time",
        "agent=ppo,reward=throughput",
        "agent=dqn,reward=time",
        "agent=dqn,reward=throughput",
    ]
    assert sweep.folder.parent == tmp_path
    for setting in ("output", "hydra.sweep.dir"):
        assert plan("agent=ppo,dqn", f"{setting}={tmp_path / 'mine'}").folder == tmp_path / "mine"


def test_names_are_safe_and_unique() -> None:
    overrides = ["data.traces=a/b.parquet", "data.traces=a-b.parquet", "data.traces='a b.parquet'", "agent.hidden=[4]"]
    overrides += [f"data.traces={'x' * 300}{end}" for end in "ab"]
    names = [job_name([override]) for override in overrides]
    assert len(set(names)) == len(names)
    assert all(len(name) < 150 and not set(name) & set("/ []'") for name in names)


def test_a_sweep_needs_a_new_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="new folder for a sweep"):
        plan("agent=ppo,dqn", f"output={tmp_path}")


def test_an_interrupted_sweep_shows_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = plan("agent=ppo,dqn,a2c,qr_dqn", f"output={tmp_path / 'sweep'}")

    def interrupted() -> None:
        write_results(sweep.jobs[0].folder, 1.25)
        error_file(sweep.jobs[1].folder).write_text("Expected more.\n", encoding="utf-8")
        (sweep.jobs[2].folder / LAST).parent.mkdir(parents=True)
        (sweep.jobs[2].folder / LAST).touch()
        sys.exit(130)

    with pytest.raises(SystemExit) as ended:
        run_sweep(sweep, interrupted, dry_run=False)
    assert ended.value.code == 130
    text = capsys.readouterr().out
    assert "agent=ppo  1.250 [1.150, 1.350]  1.250 [1.150, 1.350]  1.250 [1.150, 1.350]" in text
    assert "failed: agent=dqn: Expected more." in text
    assert f"interrupted (continue with resume={sweep.jobs[2].folder}): agent=a2c" in text
    assert "not started: agent=qr_dqn" in text
    assert (sweep.folder / SWEEP_TEXT).read_text(encoding="utf-8") in text
    record = json.loads((sweep.folder / SWEEP_JSON).read_text(encoding="utf-8"))
    assert [job["state"].split(" ")[0] for job in record["jobs"]] == ["finished", "failed", "interrupted", "not"]


def test_a_dry_run_of_a_sweep_lists_its_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program.main(["-m", "agent=ppo,dqn", "seed=0,1", f"runs_dir={tmp_path}", "dry_run=true"])
    text = capsys.readouterr().out
    assert "4 runs" in text
    assert "agent=dqn,seed=1" in text
    assert not list(tmp_path.iterdir())


def test_a_folder_of_a_sweep_can_be_named_in_a_list(tmp_path: Path) -> None:
    runs = [tmp_path / "agent=ppo,seed=0", tmp_path / "agent=ppo,seed=1"]
    for run in runs:
        run.mkdir()
    (override,) = prepare([f"controllers=[{runs[0]},{runs[1]},other]"], "evaluate", lambda *_: None)
    assert compose_checked("evaluate", [override]).controllers == [*map(str, runs), "other"]


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_failed_job_and_ends_with_one_table(tmp_path: Path) -> None:
    traces, cost = save_toy(tmp_path)
    common = [f"data.traces={traces}", f"cost.table={cost}", "data.validation_fraction=0.3", "eval.num_resamples=50"]
    outcome = subprocess.run(
        [sys.executable, "-m", "speckv", "train", "agent=fixed", "agent.gamma=1,-3,2", "output=sweep", *common],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 2
    assert outcome.stderr == "speckv: Expected gamma from 0 to 16 tokens, got -3.\n"
    record = json.loads((tmp_path / "sweep" / SWEEP_JSON).read_text(encoding="utf-8"))
    assert [(job["overrides"], job["state"]) for job in record["jobs"]] == [
        (["agent.gamma=1"], "finished"),
        (["agent.gamma=-3"], "failed"),
        (["agent.gamma=2"], "finished"),
    ]
    results = json.loads((tmp_path / "sweep/agent.gamma=2/evaluation/results.json").read_text(encoding="utf-8"))
    shown = next(g for g in results["groups"] if (g["compression"], g["task"]) == ("all", "all"))["rows"]
    expected = next(row for row in shown if row["controller"] == record["jobs"][2]["results"][0]["name"])
    assert record["jobs"][2]["results"][0]["over_best_fixed"] == expected["geomean_speedup_vs_best_fixed"]
    assert (tmp_path / "sweep" / SWEEP_TEXT).read_text(encoding="utf-8") in outcome.stdout
