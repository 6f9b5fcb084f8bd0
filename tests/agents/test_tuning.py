# SPDX-License-Identifier: Apache-2.0
"""Rules tuned on train prompts, a setting for each compression."""

import numpy as np
import pytest

from speckv.agents.constants import FixedGamma
from speckv.agents.per_compression import PerCompression, StoppingPerCompression
from speckv.agents.registry import AGENTS, TrainingData, agent_settings, make_controller
from speckv.agents.rules.llama_cpp import LlamaCpp, LlamaCppSettings
from speckv.agents.rules.transformers_heuristic import TransformersHeuristic, TransformersHeuristicSettings
from speckv.agents.runs.tuning import grids, tune
from speckv.errors import ConfigError
from speckv.replay import ReplayRecord, replay_controller
from speckv.types import Controller, StoppingController
from tests.fakes_runs import toy_traces
from tests.fakes_settings import shipped
from tests.fakes_traces import compile_both, make_cost_table, random_traces

TRAIN = toy_traces(24).select(split="train")


def rate(record: ReplayRecord, compression: str) -> float:
    rows = [row for row, name in enumerate(record.compressions) if name == compression]
    return float(record.num_tokens[rows].sum() / record.seconds[rows].sum())


def test_each_compression_is_steered_by_its_own() -> None:
    compiled, cost = compile_both(random_traces(num_prompts=6, seed=1))
    parts: dict[str, Controller] = {
        "fp16": TransformersHeuristic(shipped(TransformersHeuristicSettings)),
        "nf4": FixedGamma(2),
    }
    together = replay_controller(PerCompression(parts, name="both"), compiled, cost, controller_s=0.0)
    for compression, part in parts.items():
        alone = replay_controller(part, compiled, cost, controller_s=0.0)
        rows = [row for row, name in enumerate(alone.compressions) if name == compression]
        np.testing.assert_array_equal(together.gamma_counts[rows], alone.gamma_counts[rows])


def test_a_tuned_rule_is_told_of_every_step_once() -> None:
    data = TrainingData(train=TRAIN, cost=make_cost_table(), seed=0)
    compiled, cost = compile_both(TRAIN)
    tuned = tune("transformers_heuristic", data)
    parts = list(tuned.controllers.values())
    assert len({id(part) for part in parts}) == len(parts) == 2
    for compression, part in tuned.controllers.items():
        alone, together = replay_controller(part, compiled, cost), replay_controller(tuned, compiled, cost)
        rows = [row for row, name in enumerate(alone.compressions) if name == compression]
        np.testing.assert_array_equal(together.gamma_counts[rows], alone.gamma_counts[rows])


def test_stopping_rules_stay_stopping_rules() -> None:
    compiled, cost = compile_both(random_traces(num_prompts=6, seed=1))
    parts = {name: LlamaCpp(shipped(LlamaCppSettings, p_min=p)) for name, p in (("fp16", 0.3), ("nf4", 0.8))}
    controller = StoppingPerCompression(parts, name="both")
    assert isinstance(controller, StoppingController)
    together = replay_controller(controller, compiled, cost)
    for compression, part in parts.items():
        alone = replay_controller(part, compiled, cost)
        rows = [row for row, name in enumerate(alone.compressions) if name == compression]
        np.testing.assert_array_equal(together.gamma_counts[rows], alone.gamma_counts[rows])


@pytest.mark.parametrize("name", ["transformers_heuristic", "sglang_ema"])
def test_tuning_is_never_worse_than_any_setting_that_was_tried(name: str) -> None:
    data = TrainingData(train=TRAIN, cost=make_cost_table(), seed=0)
    compiled, cost = compile_both(TRAIN)
    tuned = replay_controller(tune(name, data), compiled, cost)

    def played(options: dict[str, object]) -> Controller:
        return make_controller(name, agent_settings({"name": name, **options})[1], data)

    first = {key: values[0] for key, values in grids()[name].items()}
    last = {key: values[-1] for key, values in grids()[name].items()}
    for options in (first, last):
        record = replay_controller(played(options), compiled, cost)
        for compression in compiled.compression_names:
            assert rate(tuned, compression) >= rate(record, compression) * (1 - 1e-12)


def test_every_grid_is_made_of_settings_that_its_agent_takes() -> None:
    for name, options in grids().items():
        assert not AGENTS[name].in_environment
        for key, values in options.items():
            for value in values:
                agent_settings({"name": name, key: value})


def test_an_agent_without_a_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match="Expected an agent with a grid"):
        tune("goodput", TrainingData(train=TRAIN, cost=make_cost_table(), seed=0))
