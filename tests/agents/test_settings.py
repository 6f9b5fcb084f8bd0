# SPDX-License-Identifier: Apache-2.0
"""Plain data into checked dataclasses."""

import pytest

from agents.building import build_settings
from agents.runs.settings import DataSettings, EvaluateSettings, RewardSettings, TrainSettings
from speckv.errors import ConfigError

WHOLE: dict[str, object] = {"agent": {"name": "ppo"}, "data": {"traces": "t"}, "cost": {"table": "c"}}


def test_defaults_fill_what_is_left_out() -> None:
    settings = build_settings(TrainSettings, {**WHOLE, "seed": 0})
    assert settings.data == DataSettings(traces="t")
    assert settings.agent == {"name": "ppo"}
    assert (settings.seed, settings.threads, settings.resume) == (0, 1, None)


def test_lists_become_tuples_and_whole_numbers_floats() -> None:
    settings = build_settings(DataSettings, {"traces": "t", "tasks": ["code"]})
    assert settings.tasks == ("code",)
    reward = build_settings(RewardSettings, {"name": "tokens_minus_cost", "token_cost": 1})
    assert (reward.token_cost, type(reward.token_cost)) == (1.0, float)
    assert build_settings(RewardSettings, {"token_cost": "auto"}).token_cost == "auto"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sed": 1}, "Unknown setting 'sed'.*Did you mean 'seed'"),
        ({"seed": "zero"}, "Expected seed to be of type int, got 'zero'"),
        ({"seed": True}, "Expected seed to be of type int"),
        ({"seed": -1}, "Expected seed 0 or more"),
        ({"data": 3}, "Expected data to be a group"),
        ({"data": {}}, "Expected a value for 'data.traces'"),
        ({"data": {"traces": "t", "tasks": [1]}}, "Expected data.tasks to be of type"),
        ({"data": {"traces": "t", "validation_fraction": 1.0}}, "data.validation_fraction between 0 and 1"),
        ({"eval": {"every_steps": 0}}, "eval.every_steps 1 or more"),
        ({"env": {"gamma_max": 17}}, "env.gamma_max from 1 to 16"),
        ({"reward": {"token_cost": "much"}}, "reward.token_cost"),
        ({"reward": {"lambda_decay": 1}}, "reward.lambda_decay"),
        ({"threads": 0}, "threads 1 or more"),
    ],
)
def test_each_wrong_setting_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_settings(TrainSettings, {**WHOLE, **change})


def test_evaluation_needs_at_least_one_resample() -> None:
    with pytest.raises(ConfigError, match="num_resamples 1 or more"):
        build_settings(EvaluateSettings, {"data": {"traces": "t"}, "cost": {"table": "c"}, "num_resamples": 0})
