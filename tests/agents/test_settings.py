# SPDX-License-Identifier: Apache-2.0
"""Plain data into checked dataclasses."""

from dataclasses import MISSING, Field, asdict, fields, is_dataclass

import pytest

from speckv.agents.building import build_settings
from speckv.agents.registry import agent_settings, default_settings
from speckv.agents.runs.settings import (
    DataSettings,
    EnvSettings,
    EvalSettings,
    EvaluateSettings,
    RewardSettings,
    TrainSettings,
)
from speckv.commands.app import CONFIGS, OWN, compose_checked, plain
from speckv.commands.train import of_run
from speckv.errors import ConfigError
from tests.fakes_settings import shipped

WHOLE = of_run(compose_checked("train", []))
EVALUATION = plain(compose_checked("evaluate", []))
DATA, REWARD = asdict(shipped(DataSettings)), asdict(shipped(RewardSettings))


def options_of(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml") if path.stem != OWN)


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"{group}={name}"] for group in ("agent", "cost", "data", "env", "reward") for name in options_of(group)),
        ["env=live", "agent=linucb"],
    ],
    ids=str,
)
def test_every_default_stands_in_one_place(overrides: list[str]) -> None:
    """A setting that the configs hold has no default in its class."""
    content = of_run(compose_checked("train", overrides))
    settings = build_settings(TrainSettings, content)
    parts = {"agent": agent_settings(settings.agent)[1], "": settings} | {
        key: getattr(settings, key) for key in content if is_dataclass(getattr(settings, key))
    }
    for key, part in parts.items():
        held = content[key] if key else content
        assert isinstance(held, dict)
        doubled = {f.name for f in fields(part) if f.name in held and not _is_mandatory(f)}
        assert not doubled - {"live", "model", "token_cost"}, key


def _is_mandatory(field: Field[object]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


@pytest.mark.slow
def test_agents_have_the_same_defaults_wherever_they_are_made() -> None:
    for name in options_of("agent"):
        content = plain(compose_checked("train", [f"agent={name}"]))["agent"]
        assert isinstance(content, dict)
        assert agent_settings(content) == (name, default_settings(name))


def test_lists_become_tuples_and_whole_numbers_floats() -> None:
    settings = build_settings(DataSettings, {**DATA, "tasks": ["code"]})
    assert settings.tasks == ("code",)
    reward = build_settings(RewardSettings, {**REWARD, "token_cost": 1})
    assert (reward.token_cost, type(reward.token_cost)) == (1.0, float)
    assert build_settings(RewardSettings, {**REWARD, "token_cost": "auto"}).token_cost == "auto"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sed": 1}, "Unknown setting 'sed'.*Did you mean 'seed'"),
        ({"seed": "zero"}, "Expected seed to be of type int, got 'zero'"),
        ({"seed": True}, "Expected seed to be of type int"),
        ({"seed": -1}, "Expected seed 0 or more"),
        ({"data": 3}, "Expected data to be a group"),
        ({"data": {}}, "Expected a value for 'data.traces'"),
        ({"data": {**DATA, "tasks": [1]}}, "Expected data.tasks to be of type"),
        ({"data": {**DATA, "validation_fraction": 1.0}}, "data.validation_fraction between 0 and 1"),
        ({"eval": {**asdict(shipped(EvalSettings)), "every_steps": 0}}, "eval.every_steps 1 or more"),
        ({"env": {**asdict(shipped(EnvSettings)), "gamma_max": 17}}, "env.gamma_max from 1 to 16"),
        ({"reward": {**REWARD, "token_cost": "much"}}, "reward.token_cost"),
        ({"reward": {**REWARD, "lambda_decay": 1}}, "reward.lambda_decay"),
        ({"threads": 0}, "threads 1 or more"),
    ],
)
def test_each_wrong_setting_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_settings(TrainSettings, {**WHOLE, **change})


def test_evaluation_needs_at_least_one_resample() -> None:
    with pytest.raises(ConfigError, match="num_resamples 1 or more"):
        build_settings(EvaluateSettings, {**EVALUATION, "num_resamples": 0})
