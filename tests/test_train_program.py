# SPDX-License-Identifier: Apache-2.0
"""`speckv train` as a program: its command line, its errors, and being told to stop."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from speckv.agents.runs.run_folder import LAST, RunFolder
from speckv.agents.runs.study import runs_of
from speckv.commands import evaluate as evaluation
from speckv.commands import train as program
from speckv.commands.app import OWN, compose_checked, prepare, resumed
from speckv.errors import ConfigError, SpecKVError
from tests.fakes_runs import TINY_PPO, save_toy

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["agent=pop"], "Did you mean 'ppo'"),
        (["cost=rtx3090"], "Did you mean 'rtx3090-paper'"),
        (["agent.totl_steps=5"], "Did you mean 'agent.total_steps'"),
        (["+agent.speed=5"], "Unknown setting 'agent.speed'"),
        (["model=llama3"], "model null without env=live"),
        (["init_from=shipped"], "init_from null without env=live"),
        (["model.dtype=float32"], "Unknown setting 'model.dtype'"),
        (["env=live", "model=lama3"], "Did you mean 'llama3'"),
        (["env=live", "env.budget=1"], "env.budget 2 tokens or more"),
        (["env=live", "live.heldout=-1"], "live.heldout 0 or more"),
        (["env=live", "live.request=3"], "Did you mean 'live.requests'"),
        (["env_agent=live_ppo"], "Unknown setting 'env_agent'"),
        (["reward@other=tokens"], "Unknown setting 'reward@other'"),
        (["~agent.speed"], "Unknown setting 'agent.speed'"),
        (["sed=1"], "Did you mean 'seed'"),
        (["agent=fixed", "agent.total_steps=5"], "Unknown setting 'agent.total_steps'"),
        (["seed=zero"], "seed to be of type int"),
        (["seed=0,one,2"], "seed to be of type int"),
        (["agent=ppo,pop"], "Did you mean 'ppo'"),
        (["seed"], "key=value"),
        (["resume=nowhere"], "nowhere"),
    ],
)
def test_a_wrong_command_line_is_one_error(arguments: list[str], message: str) -> None:
    with pytest.raises(SpecKVError, match=message):
        prepare(arguments, program.NAME, program.check)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("told", "message"),
    [
        (["agent.learnin_rate=0.1"], "Arm 'typo' of .*Did you mean 'agent.learning_rate'"),
        (["agent.epochs=0"], "Arm 'typo' of .*agent.epochs 1 or more"),
        (["agnt=ppo"], "Arm 'typo' of .*Did you mean 'agent'"),
    ],
)
def test_what_an_arm_is_told_is_checked_before_any_run(told: list[str], message: str) -> None:
    overrides = ["experiment=ablation/observation", "seeds=[0]"]
    config = compose_checked(program.NAME, overrides)
    program.check(config, overrides)
    config.study.arms = {"fine": [], "typo": told}
    with pytest.raises(ConfigError, match=message):
        program.check(config, overrides)


def test_a_study_goes_on_with_the_settings_alone_that_its_runs_began_with(tmp_path: Path) -> None:
    """Of a run, that is, by whatever file a setting came from: the command line can be the same."""
    overrides = ["agent=fixed", "agent.gamma=2", "seeds=2", f"output={tmp_path}"]
    config = compose_checked(program.NAME, overrides)
    for job in runs_of(program.settings_from(config), overrides):
        began = compose_checked(program.NAME, [*job.overrides, f"output={job.folder}"])
        job.folder.mkdir(parents=True)
        RunFolder(job.folder).record_start(OmegaConf.to_yaml(began, resolve=True), job.overrides, {})
    program.check(config, overrides)
    began.agent.gamma = 3
    RunFolder(job.folder).record_start(OmegaConf.to_yaml(began, resolve=True), job.overrides, {})
    with pytest.raises(ConfigError, match=r"seed1 to hold a run of today's settings, got agent.gamma=3 there and .*=2"):
        program.check(config, overrides)


def test_settings_that_a_search_tries_are_looked_for_before_any_trial() -> None:
    overrides = ["tune=ppo", "search.trials=3"]
    config = compose_checked(program.NAME, overrides)
    program.check(config, overrides)
    config.search.space = {"agent.learnin_rate": {"low": 0.1, "high": 0.2}}
    with pytest.raises(ConfigError, match=r"Did you mean 'agent.learning_rate'"):
        program.check(config, overrides)


def test_several_values_mean_several_runs() -> None:
    assert prepare(["seed=0,1,2"], program.NAME, program.check) == ["seed=0,1,2", "--multirun"]
    assert prepare(["-m", "seed=0,1"], program.NAME, program.check) == ["-m", "seed=0,1"]
    assert prepare(["data.tasks=[code,math]"], program.NAME, program.check) == ["data.tasks=[code,math]"]
    assert prepare(["--cfg", "job"], program.NAME, program.check) == ["--cfg", "job"]


@pytest.mark.slow
@pytest.mark.parametrize("group", ["agent", "cost", "env", "data", "reward", "experiment"])
def test_every_config_composes_into_settings(group: str) -> None:
    names = sorted(p.stem for p in (ROOT / "configs" / group).glob("*.yaml") if p.stem != OWN)
    assert names
    for name in names:
        header = (ROOT / "configs" / group / f"{name}.yaml").read_text(encoding="utf-8")
        # An experiment's header names the program that runs it.
        if re.search(rf"evaluate(\.py)? {group}={name}\n", header):
            settings = evaluation.settings_from(compose_checked(evaluation.NAME, [f"{group}={name}"]))
            if name == "zoo":
                assert (settings.agents, settings.tuned) == (("all",), True)
            else:
                assert settings.paper is not None
        else:
            program.settings_from(compose_checked(program.NAME, [f"{group}={name}"]))


@pytest.mark.parametrize("agent", ["ppo", "a2c"])
@pytest.mark.parametrize("env", ["live", "live_stopping"])
def test_a_learner_is_made_small_where_steps_are_slow_unless_told_otherwise(env: str, agent: str) -> None:
    settings = program.settings_from(compose_checked(program.NAME, [f"agent={agent}", f"env={env}"]))
    assert settings.agent["num_envs"] == 1
    assert int(str(settings.agent["total_steps"])) <= 4096
    assert settings.model is not None
    assert settings.model["name"] == "qwen2.5-coder"
    assert settings.env.decides == ("per_step" if env == "live" else "per_token")
    told = compose_checked(program.NAME, [f"agent={agent}", f"env={env}", "model=smollm2", "agent.total_steps=7"])
    assert (told.agent.total_steps, told.model.name) == (7, "smollm2")


def test_resume_takes_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 7\nresume: null\n")
    config = compose_checked(program.NAME, [f"resume={tmp_path}"])
    assert resumed(config, [f"resume={tmp_path}"]).seed == 7
    with pytest.raises(ConfigError, match="nothing but resume="):
        resumed(config, [f"resume={tmp_path}", "seed=1"])


def command(program_name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / program_name), *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_the_program_explains_an_error_in_one_line(tmp_path: Path) -> None:
    outcome = subprocess.run(
        command("train.py", "agent=pop"), cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 2
    assert outcome.stderr.startswith("speckv: ")
    assert len(outcome.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_program_saves_when_told_to_terminate_and_goes_on_later(tmp_path: Path) -> None:
    traces, cost = save_toy(tmp_path)
    output = tmp_path / "run"
    small = [f"agent.{key}={value}" for key, value in TINY_PPO.items() if key not in ("name", "total_steps")]
    arguments = ["agent.total_steps=100000000", f"data.traces={traces}", f"cost.table={cost}", f"output={output}"]
    process = subprocess.Popen(
        command("train.py", *arguments, *small, "eval.every_steps=100", "data.validation_fraction=0.3"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step ") and "step         0" not in line:
                break
        process.terminate()
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, errors
    assert "resume=" in errors
    assert (output / LAST).is_file()
    assert not list(tmp_path.glob("outputs")), "Hydra made a folder of its own"
    config = (output / "config.yaml").read_text()
    assert "total_steps: 100000000" in config
    state = json.loads(str(torch.load(output / LAST, weights_only=True)["state"]))
    assert state["num_timesteps"] >= 128
