# SPDX-License-Identifier: Apache-2.0
"""`cost.batch` above 1: agents that decide token by token are refused at the start, the others get one warning."""

import logging
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import pytest

import speckv.envs  # noqa: F401 - registers the environments
from speckv.agents.registry import AGENTS, TrainingData, agent_settings, make_controller, require_batch
from speckv.agents.runs.evaluating import evaluate
from speckv.agents.runs.settings import (
    CostSettings,
    DataSettings,
    EnvSettings,
    EvaluateSettings,
    RewardSettings,
    TrainSettings,
)
from speckv.agents.runs.training import train
from speckv.agents.runs.tuning import grids, tune
from speckv.commands import train as script
from speckv.commands.app import compose_checked
from speckv.commands.main import main
from speckv.cost import CostTable
from speckv.errors import ConfigError
from speckv.evaluation.compare import compare
from speckv.export.compiled import compile_batches
from speckv.runtime.constant import ConstantGamma
from tests.fakes_runs import TINY_PPO, CapturedConsole, toy_settings, toy_traces
from tests.fakes_settings import shipped
from tests.fakes_traces import make_cost_table

STOPPING = (
    "adaedl",
    "calibrated_stopping",
    "kangaroo",
    "llama_cpp",
    "self_timed",
    "self_timed_online",
    "survival_stopping",
    "svip",
    "tapout",
    "transformers_confidence",
)


def loaded() -> CostTable:
    """Times at batches 1 and 8."""
    table = make_cost_table()
    busy = [replace(e, batch=8, verify_s=tuple(2 * s for s in e.verify_s)) for e in table.entries.values()]
    return replace(table, loads=busy)


def settings(tmp_path: Path, agent: dict[str, object], **changes: object) -> TrainSettings:
    made = toy_settings(tmp_path, tmp_path / "run", agent=agent)
    loaded().save(tmp_path / "toy.json")
    return replace(made, cost=replace(made.cost, batch=8), **changes)  # type: ignore[arg-type]


def test_the_agents_that_decide_token_by_token() -> None:
    assert {n for n, a in AGENTS.items() if not a.in_environment and hasattr(a.controller_class, "go_on")} == set(
        STOPPING
    )


@pytest.mark.parametrize("name", STOPPING)
def test_they_are_refused_before_a_run_folder_exists(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"cost\.batch 1 for agent {name}"):
        train(settings(tmp_path, {"name": name}), CapturedConsole(), config="", overrides=[])
    assert not (tmp_path / "run").exists()
    data = TrainingData(train=toy_traces(8).select(split="train"), cost=loaded().at_batch(8), seed=0)
    with pytest.raises(ConfigError, match=rf"cost\.batch 1 for agent {name}"):
        make_controller(name, agent_settings({"name": name})[1], data)


def test_so_are_learners_that_decide_token_by_token(tmp_path: Path) -> None:
    per_token = {
        "env": shipped(EnvSettings, decides="per_token"),
        "reward": shipped(RewardSettings, name="lambda_throughput"),
    }
    with pytest.raises(ConfigError, match=r"cost\.batch 1 for agent ppo"):
        train(settings(tmp_path, TINY_PPO, **per_token), CapturedConsole(), config="", overrides=[])
    assert not (tmp_path / "run").exists()
    require_batch("ppo", None, 8)  # once a step
    _, plus = agent_settings({"name": "gammatune", "threshold": 0.4})
    with pytest.raises(ConfigError, match="gammatune"):
        require_batch("gammatune", plus, 8)


@pytest.mark.slow
def test_the_command_line_and_every_arm_of_a_study_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"cost\.batch 1 for agent svip"):
        script.check(compose_checked("train", ["agent=svip", "cost.batch=4"]))
    told = ["experiment=ablation/granularity", "cost.batch=4"]
    with pytest.raises(ConfigError, match=r"cost\.batch 1 for agent"):
        script.check(compose_checked("train", told), told)


def test_the_environment_inside_a_step_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cost\.batch 1"):
        gym.make("SpecKV/DraftStopping-v0", traces=toy_traces(8), cost=loaded().at_batch(8))
    gym.make("SpecKV/GammaSelection-v0", traces=toy_traces(8), cost=loaded().at_batch(8)).close()


def asked(tmp_path: Path, **changes: object) -> EvaluateSettings:
    settings(tmp_path, {"name": "fixed", "gamma": 2})
    made = shipped(
        EvaluateSettings,
        data=shipped(DataSettings, traces=str(tmp_path / "toy.parquet")),
        cost=shipped(CostSettings, table=str(tmp_path / "toy.json"), batch=8),
        controllers=(),
        num_resamples=20,
        output=str(tmp_path / "out"),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_evaluation_refuses_them_by_name_and_as_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cost\.batch 1 for agent svip"):
        evaluate(asked(tmp_path, agents=("svip",)), CapturedConsole())
    train(
        toy_settings(tmp_path, tmp_path / "alone", agent={"name": "svip"}), CapturedConsole(), config="", overrides=[]
    )
    with pytest.raises(ConfigError, match=r"cost\.batch 1 for svip"):
        evaluate(asked(tmp_path, controllers=(str(tmp_path / "alone"),)), CapturedConsole())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_constants_pass_without_a_word_and_rules_with_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train(settings(tmp_path, {"name": "best_fixed"}), CapturedConsole(), config="", overrides=[])
    assert "cost.batch" not in caplog.text
    with caplog.at_level(logging.WARNING):
        evaluate(asked(tmp_path, agents=("sglang_ema",)), CapturedConsole())
    (line,) = [r.getMessage() for r in caplog.records if "cost.batch=8" in r.getMessage()]
    assert "makes them wait, which the replay does not charge" in line


def test_a_comparison_refuses_them_too() -> None:
    traces = toy_traces(8)
    _, svip = agent_settings({"name": "svip"})
    controller = make_controller("svip", svip, TrainingData(train=traces, cost=make_cost_table(), seed=0))
    train_half, test_half = traces.select(split="train"), traces.select(split="test")
    with pytest.raises(ConfigError, match=r"cost\.batch 1 for svip"):
        compare(train=train_half, test=test_half, cost=loaded().at_batch(8), controllers=[controller])


@pytest.mark.parametrize("name", sorted(set(grids()) & set(STOPPING)))
def test_grids_of_such_rules_are_refused(name: str) -> None:
    data = TrainingData(train=toy_traces(8).select(split="train"), cost=loaded().at_batch(8), seed=0)
    with pytest.raises(ConfigError, match=rf"cost\.batch 1 for agent {name}"):
        tune(name, data)


@pytest.mark.slow
def test_a_table_by_batch_holds_no_loss_of_such_a_policy_above_batch_one() -> None:
    traces = toy_traces(8).select(compressions=["fp16"])
    _, svip = agent_settings({"name": "svip"})
    controller = make_controller("svip", svip, TrainingData(train=traces, cost=make_cost_table(), seed=0))
    table = compile_batches(controller, traces, loaded())
    assert set(table.gammas) == {1, 8}
    assert table.loss[1] is not None
    assert table.loss[8] is None
    assert compile_batches(ConstantGamma(2), traces, loaded()).loss[8] is not None


@pytest.mark.slow
def test_live_decoding_from_the_command_line_refuses_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(toy_settings(tmp_path, tmp_path / "run", agent={"name": "svip"}), CapturedConsole(), config="", overrides=[])
    loaded().save(tmp_path / "toy.json")
    told = [f"cost.table={tmp_path / 'toy.json'}", "cost.batch=8", f"controller={tmp_path / 'run'}"]
    with pytest.raises(SystemExit, match="2"):
        main(["decode", "abc", *told])  # before any model is loaded
    assert "cost.batch 1 for svip" in capsys.readouterr().err
