# SPDX-License-Identifier: Apache-2.0
"""`speckv evaluate`: which controllers it takes, what it prints and saves, and that it repeats itself to the byte."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.paper.report import reproduce
from speckv.agents.constants import FixedGamma
from speckv.agents.runs.evaluating import evaluate
from speckv.agents.runs.settings import CostSettings, DataSettings, EvaluateSettings, PaperSettings
from speckv.agents.runs.training import train
from speckv.commands import evaluate as program
from speckv.commands.app import compose_checked, prepare
from speckv.errors import CheckpointError, CostTableError, DataError, SchemaError, SpecKVError, TraceError
from speckv.runtime import Policy, PolicyController
from speckv.runtime import shipped as policies
from tests.fakes_paper import write_paper
from tests.fakes_policies import store
from tests.fakes_runs import CapturedConsole, save_toy, toy_settings
from tests.fakes_settings import shipped
from tests.speckv.test_evaluation_seeds import make_run
from tests.speckv.test_runtime_learned import random_policy

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def settings(tmp_path: Path) -> EvaluateSettings:
    traces, cost = save_toy(tmp_path)
    return shipped(
        EvaluateSettings,
        data=shipped(DataSettings, traces=traces),
        cost=shipped(CostSettings, table=cost),
        num_resamples=50,
        runs_dir=str(tmp_path / "runs"),
    )


def test_named_controllers_are_compared_and_saved(settings: EvaluateSettings, tmp_path: Path) -> None:
    store(tmp_path / "learned", PolicyController(random_policy()))
    store(tmp_path / "rule", FixedGamma(2))
    output = tmp_path / "results"
    named = replace(settings, controllers=(str(tmp_path / "learned"), str(tmp_path / "rule")), output=str(output))
    console = CapturedConsole()
    comparison = evaluate(named, console)
    assert comparison.controllers == ("random", "agent fixed-2")
    assert "random" in (output / "results.txt").read_text()
    last = json.loads(console.text.splitlines()[-1])
    assert set(last["x_best_fixed"]) == {"random", "agent fixed-2"}
    assert last["output"] == str(output)
    first = (output / "results.json").read_bytes()
    evaluate(named, CapturedConsole())
    assert (output / "results.json").read_bytes() == first
    times = json.loads((output / "decision_times.json").read_text())["decision_times"]
    assert [t["controller"] for t in times] == ["random", "agent fixed-2"]


def train_seeds(settings: EvaluateSettings, tmp_path: Path, seeds: tuple[int, ...]) -> tuple[str, ...]:
    """Trains the same logistic model with several seeds; what it draws from its seed is beside the point here."""
    folders = []
    for seed in seeds:
        run = tmp_path / "runs" / f"mine-seed{seed}"
        made = replace(
            toy_settings(tmp_path, run, agent={"name": "survival"}), cost=settings.cost, data=settings.data, seed=seed
        )
        config = f"agent:\n  name: survival\nseed: {seed}\noutput: {run}\n"
        train(made, CapturedConsole(), config=config, overrides=[])
        folders.append(str(run))
    return tuple(folders)


@pytest.mark.slow
def test_runs_that_differ_by_seed_are_one_controller(settings: EvaluateSettings, tmp_path: Path) -> None:
    store(tmp_path / "rule", FixedGamma(2))
    runs = train_seeds(settings, tmp_path, (0, 1, 2))
    console = CapturedConsole()
    named = replace(settings, controllers=(*runs, str(tmp_path / "rule")), output=str(tmp_path / "results"))
    comparison = evaluate(named, console)
    assert comparison.entrants == ("survival (3 seeds)", "agent fixed-2")
    assert "survival (3 seeds): mine-seed0, mine-seed1, mine-seed2" in console.text
    content = json.loads((tmp_path / "results" / "results.json").read_text())
    assert content["seed_groups"] == {"survival (3 seeds)": ["mine-seed0", "mine-seed1", "mine-seed2"]}
    for group in content["groups"]:
        rows = {row["controller"]: row for row in group["rows"]}
        assert {"survival (3 seeds)", "mine-seed0", "mine-seed1", "mine-seed2", "agent fixed-2"} <= set(rows)
        assert "seeds_iqm_speedup_vs_best_fixed" in rows["survival (3 seeds)"]
    families = content["significance"]["families"]
    questions = {(f["question"], f["compression"]) for f in families}
    assert questions == {
        (q, c) for q in ("best fixed gamma", "first-ranked controller") for c in ("fp16", "nf4", "all")
    }
    assert {v["verdict"] for f in families for v in f["verdicts"]} <= {
        "ahead of",
        "behind",
        "not distinguishable from",
    }
    text = (tmp_path / "results" / "results.txt").read_text()
    assert "mine-seed0" not in text.partition("decision time")[0]
    assert "interquartile mean" in text


@pytest.mark.figures
@pytest.mark.slow
def test_the_same_seed_leaves_the_same_bytes(settings: EvaluateSettings, tmp_path: Path) -> None:
    """Every file that is promised: all but the decision times, and their lines at the end of the text."""
    store(tmp_path / "learned", PolicyController(random_policy()))
    runs = [str(make_run(tmp_path / f"rule-seed{seed}", seed=seed)) for seed in (0, 1)]
    saved = []
    for name in ("first", "second"):
        output = tmp_path / name
        evaluate(
            replace(
                settings,
                controllers=(*runs, str(tmp_path / "learned")),
                agents=("svip", "ucb1"),
                output=str(output),
                seed=7,
            ),
            CapturedConsole(),
        )
        files = {path.name: path.read_bytes() for path in output.iterdir()}
        assert files.pop("decision_times.json")
        files["results.txt"] = files["results.txt"].partition(b"decision time of")[0]
        saved.append(files)
    assert sorted(saved[0]) == [
        "gamma.png",
        "per_prompt.csv",
        "profiles.png",
        "results.json",
        "results.txt",
        "speedup.png",
        "timeline.png",
        "x_best_fixed.png",
    ]
    assert saved[0] == saved[1]


def test_by_default_the_latest_run_is_taken_and_written_into(settings: EvaluateSettings, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    made = replace(toy_settings(tmp_path, run, agent={"name": "best_fixed"}), cost=settings.cost, data=settings.data)
    train(made, CapturedConsole(), config="", overrides=[])
    trained = (run / "evaluation" / "results.json").read_bytes()
    (run / "evaluation" / "results.json").unlink()
    console = CapturedConsole()
    comparison = evaluate(settings, console)
    assert comparison.controllers == ("agent best-fixed",)
    assert f"controller agent best-fixed: {run}" in console.text
    # The same code at the end of training, so the same bytes.
    assert (run / "evaluation" / "results.json").read_bytes() == trained


def test_without_a_run_the_shipped_policy_is_taken(
    settings: EvaluateSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "SHIPPED", tmp_path / "shipped")
    Policy.of(PolicyController(random_policy())).save(tmp_path / "shipped" / "self-timed.speckv")
    assert evaluate(settings, CapturedConsole()).controllers == ("random",)
    assert (tmp_path / "runs" / "evaluate-fake" / "results.json").is_file()


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("no controller", CheckpointError),
        ("another observation", SchemaError),
        ("truncated traces", TraceError),
        ("other compressions", CostTableError),
    ],
)
def test_one_clear_error_and_nothing_written(
    settings: EvaluateSettings, tmp_path: Path, case: str, kind: type[SpecKVError]
) -> None:
    policy = tmp_path / "learned"
    Policy.of(PolicyController(random_policy())).save(policy)
    if case == "no controller":
        policy = tmp_path / "nothing"
    elif case == "another observation":
        card = json.loads((policy / "policy.json").read_text())
        card["observation"]["schema"]["fields"][0]["name"] = "mood"
        (policy / "policy.json").write_text(json.dumps(card))
    elif case == "truncated traces":
        traces = Path(settings.data.traces)
        traces.write_bytes(traces.read_bytes()[:1000])
    else:
        table = json.loads(Path(settings.cost.table).read_text())
        del table["entries"]["nf4"]
        Path(settings.cost.table).write_text(json.dumps(table))
    output = tmp_path / "results"
    with pytest.raises(kind):
        evaluate(replace(settings, controllers=(str(policy),), output=str(output)), CapturedConsole())
    assert not output.exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["controler=[a]"], "Did you mean 'controllers'"),
        (["cost=cpu"], "Did you mean 'cpu-2core'"),
        (["controllers=3"], "controllers to be of type"),
        (["num_resamples=0"], "num_resamples 1 or more"),
        (["agent=ppo"], "Unknown setting 'agent'"),
    ],
)
def test_a_wrong_command_line_is_one_error(arguments: list[str], message: str) -> None:
    with pytest.raises(SpecKVError, match=message):
        prepare(arguments, program.NAME, program.check)


def test_the_config_composes() -> None:
    settings = program.settings_from(compose_checked(program.NAME, ["controllers=[runs/a,runs/b]"]))
    assert settings.controllers == ("runs/a", "runs/b")


@pytest.mark.slow
def test_the_program_ends_with_one_line_of_json(settings: EvaluateSettings, tmp_path: Path) -> None:
    outcome = subprocess.run(
        [
            sys.executable,
            str(ROOT / "evaluate.py"),
            f"data.traces={settings.data.traces}",
            f"cost.table={settings.cost.table}",
            "num_resamples=50",
            f"output={tmp_path / 'results'}",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr == ""
    assert json.loads(outcome.stdout.splitlines()[-1])["cost"] == "fake"
    assert (tmp_path / "results" / "speedup.png").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results", "toy.json", "toy.parquet"]


def test_the_papers_study_takes_the_place_of_a_comparison(settings: EvaluateSettings, tmp_path: Path) -> None:
    paper = shipped(PaperSettings, folder=str(write_paper(tmp_path / "paper")), num_seeds=1)
    console = CapturedConsole()
    reproduce(paper, settings, console)
    last = json.loads(console.text.splitlines()[-1])
    assert last["published"]["SpecKV-fast"] == 4.5
    saved = json.loads((tmp_path / "runs" / "speckv-paper" / "results.json").read_text())
    assert [c["split"] for c in saved["conditions"]] == ["none", "steps", "prompts", "prompts"]
    with pytest.raises(DataError, match=r"name yours with paper\.folder"):
        reproduce(shipped(PaperSettings, folder=str(tmp_path / "nothing")), replace(settings, output="x"), console)
    composed = program.settings_from(
        compose_checked(program.NAME, ["experiment=speckv_paper", "paper.folder=elsewhere"])
    )
    assert composed.paper == shipped(PaperSettings, folder="elsewhere")
