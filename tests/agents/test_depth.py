# SPDX-License-Identifier: Apache-2.0
"""Recordings shallower than 16 tokens: agents draft no deeper, or are refused before anything is trained."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from speckv.agents.registry import (
    AGENTS,
    UNBOUNDED,
    TrainingData,
    agent_settings,
    decides_token_by_token,
    make_controller,
    within_depth,
)
from speckv.agents.runs.evaluating import evaluate
from speckv.agents.runs.settings import CostSettings, DataSettings, EvaluateSettings, TrainSettings
from speckv.agents.runs.training import train
from speckv.agents.runs.tuning import grids, tune
from speckv.errors import ConfigError, SpecKVError
from speckv.evaluation.replays import compile_pair, controller_sums
from speckv.observation import SCHEMA
from speckv.runtime.policy import load_controller
from speckv.traces import TraceSequence, TraceSet
from speckv.types import StoppingController
from tests.fakes_runs import TINY_PPO, CapturedConsole, toy_settings, toy_traces
from tests.fakes_settings import shipped
from tests.fakes_traces import make_cost_table

DEPTH = 3
QUICK = {"epochs": 1}
SLOW = ("neural_linear", "survival", "survival_stopping", "speckv_mlp", "speckv_mlp_cost")


def capped(sequence: TraceSequence, depth: int) -> TraceSequence:
    shorter = {
        name: np.minimum(getattr(sequence, name), depth).astype(np.int8) for name in ("accepted_length", "eos_stop")
    }
    return replace(sequence, **shorter)


def shallow(depth: int = DEPTH, number: int = 16) -> TraceSet:
    traces = toy_traces(number)
    return replace(
        traces,
        metadata=replace(traces.metadata, gamma_max=depth),
        sequences=tuple(capped(s, depth) for s in traces.sequences),
    )


def options(name: str) -> dict[str, object]:
    return {"name": name, **(QUICK if name in SLOW else {}), **({"gamma": 2} if name == "fixed" else {})}


def settings(tmp_path: Path, traces: TraceSet, output: str, agent: dict[str, object]) -> TrainSettings:
    made = toy_settings(tmp_path, tmp_path / output, agent=agent)
    traces.save(tmp_path / "toy.parquet")
    return made


@pytest.mark.parametrize("name", sorted(n for n, a in AGENTS.items() if not a.in_environment and n not in UNBOUNDED))
def test_every_agent_drafts_as_deep_as_was_recorded(name: str) -> None:
    traces = shallow()
    train_half, test_half = traces.select(split="train"), traces.select(split="test")
    kind, checked = agent_settings(options(name))
    limited = within_depth(kind, checked, DEPTH)
    data = TrainingData(train=train_half, cost=make_cost_table(), seed=0)
    controller = make_controller(name, limited, data)
    sums = controller_sums(controller, *compile_pair(test_half, make_cost_table()))  # refuses anything deeper
    assert sums.gammas.shape[-1] == DEPTH + 1
    assert (sums.accepted <= sums.drafted).all()
    assert decides_token_by_token(name, limited) == isinstance(controller, StoppingController)


def test_full_depth_changes_no_settings() -> None:
    for name in AGENTS:
        _, checked = agent_settings(options(name))
        assert within_depth(name, checked, 16) is checked


@pytest.mark.parametrize("name", UNBOUNDED)
def test_a_gamma_without_a_limit_needs_full_depth(name: str) -> None:
    _, checked = agent_settings({"name": name})
    with pytest.raises(ConfigError, match=f"gamma_max 16 for agent {name}"):
        within_depth(name, checked, 8)


def test_a_constant_deeper_than_the_recordings_is_refused() -> None:
    _, checked = agent_settings({"name": "fixed", "gamma": 12})
    with pytest.raises(ConfigError, match=r"gamma_max 12 for agent fixed, .* got 8"):
        within_depth("fixed", checked, 8)
    _, arms = agent_settings({"name": "ucb1", "arms": [4, 8]})
    with pytest.raises(ConfigError, match=r"agent\.arms to hold a length of at most 3"):
        within_depth("ucb1", arms, 3)


@pytest.mark.parametrize("name", sorted(set(grids()) - {*UNBOUNDED, "adaedl", "svip", "transformers_confidence"}))
def test_grids_are_tuned_within_the_depth(name: str) -> None:
    traces = shallow(number=8)
    data = TrainingData(train=traces.select(split="train"), cost=make_cost_table(), seed=0)
    tuned = tune(name, data)
    sums = controller_sums(tuned, *compile_pair(traces.select(split="test"), make_cost_table()))
    assert sums.gammas.shape[-1] == DEPTH + 1


def test_ppo_is_trained_with_the_actions_that_were_recorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = {**TINY_PPO, "total_steps": 256, "hidden": [8]}
    with caplog.at_level(logging.WARNING):
        train(settings(tmp_path, shallow(number=24), "run", small), CapturedConsole(), config="", overrides=[])
    assert "drafts of up to 3 tokens" in caplog.text
    policy = load_controller(tmp_path / "run")
    found = policy.act_batch(np.random.default_rng(0).random((500, SCHEMA.size)).astype(np.float32))
    assert found.max() <= DEPTH


def test_a_deeper_controller_is_refused_before_agents_are_made(tmp_path: Path) -> None:
    train(
        toy_settings(tmp_path, tmp_path / "deep", agent={"name": "fixed", "gamma": 12}),
        CapturedConsole(),
        config="",
        overrides=[],
    )
    shallow(number=24).save(tmp_path / "toy.parquet")
    asked = shipped(
        EvaluateSettings,
        data=shipped(DataSettings, traces=str(tmp_path / "toy.parquet")),
        cost=shipped(CostSettings, table=str(tmp_path / "toy.json")),
        controllers=(str(tmp_path / "deep"),),
        num_resamples=20,
        output=str(tmp_path / "out"),
    )
    with pytest.raises(ConfigError, match=r"agent fixed-12 does not fit these recordings: .* 0 to 3, got 12"):
        evaluate(asked, CapturedConsole())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("agent", [{"name": "fixed", "gamma": 12}, {"name": "gammatune"}])
def test_a_refusal_leaves_no_run_folder(tmp_path: Path, agent: dict[str, object]) -> None:
    with pytest.raises(SpecKVError, match="Expected recordings of gamma_max"):
        train(settings(tmp_path, shallow(number=24), "run", agent), CapturedConsole(), config="", overrides=[])
    assert not (tmp_path / "run").exists()
