# SPDX-License-Identifier: Apache-2.0
"""Constants, the tuned constant, and the protocol that every controller answers to."""

import numpy as np
import pytest

from speckv.agents.constants import BestFixedGamma, BestFixedSettings, FixedGamma, FixedSettings
from speckv.agents.registry import TrainingData, agent_settings, make_controller
from speckv.cost import CompiledCost
from speckv.errors import ConfigError
from speckv.observation import SCHEMA
from speckv.replay import CompiledTraces, replay_policy
from speckv.types import Controller, FloatArray
from tests.fakes_runs import toy_traces
from tests.fakes_traces import make_cost_table, random_traces


def observations(bits: list[float]) -> FloatArray:
    rows = np.zeros((len(bits), SCHEMA.size), np.float32)
    rows[:, SCHEMA.index("bits_per_weight")] = bits
    return rows


@pytest.mark.parametrize("controller", [FixedGamma(3), BestFixedGamma({"fp16": 3})])
def test_rules_answer_the_protocol_in_batch_as_alone(controller: Controller) -> None:
    assert isinstance(controller, Controller)
    assert not controller.charges_decision
    controller.reset()
    rows = observations([1.0, 0.25])
    assert controller.act_batch(rows).tolist() == [controller.act(row) for row in rows] == [3, 3]


@pytest.mark.parametrize("gamma", [-1, 17])
def test_fixed_gamma_out_of_range_is_refused(gamma: int) -> None:
    with pytest.raises(ConfigError, match="from 0 to 16"):
        FixedGamma(gamma)


def test_best_fixed_reads_the_compression_off_the_observation() -> None:
    controller = BestFixedGamma({"fp16": 5, "int8": 2, "nf4": 1})
    # int8 is 8 of 16 bits, nf4 is 4 of 16.
    assert controller.act_batch(observations([1.0, 0.5, 0.25, 0.5])).tolist() == [5, 2, 1, 2]


@pytest.mark.parametrize(
    ("gammas", "message"), [({}, "at least one"), ({"fp17": 1}, "Did you mean 'fp16'"), ({"nf4": 17}, "from 0 to 16")]
)
def test_best_fixed_refuses_nonsense(gammas: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BestFixedGamma(gammas)


def test_best_fixed_is_the_best_of_all_constants_on_train_prompts() -> None:
    traces, cost = random_traces(num_prompts=12, seed=3).select(split="train"), make_cost_table()
    controller = BestFixedGamma.make(BestFixedSettings(), TrainingData(train=traces, cost=cost, seed=0))
    for compression in traces.compressions:
        part = traces.select(compressions=[compression])
        compiled, compiled_cost = CompiledTraces(part), CompiledCost(cost, [compression])

        def throughput(
            gamma: int, compiled: CompiledTraces = compiled, compiled_cost: CompiledCost = compiled_cost
        ) -> float:
            return replay_policy(compiled, compiled_cost, FixedGamma(gamma).act_batch).throughput

        assert throughput(controller.gammas[compression]) == max(throughput(g) for g in range(17))


def test_options_become_checked_settings() -> None:
    assert agent_settings({"name": "fixed", "gamma": 4}) == ("fixed", FixedSettings(gamma=4))
    data = TrainingData(train=toy_traces(8).select(split="train"), cost=make_cost_table(), seed=0)
    rule = make_controller("best_fixed", BestFixedSettings(), data)
    assert isinstance(rule, BestFixedGamma)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "pop"}, "Did you mean 'ppo'"),
        ({"gamma": 4}, "agent.name"),
        ({"name": "fixed", "gama": 4}, "Did you mean 'gamma'"),
        ({"name": "fixed", "gamma": "four"}, "agent.gamma to be of type int"),
        ({"name": "ppo", "num_envs": 3, "num_steps": 5, "batch_size": 4}, "to divide a rollout"),
        ({"name": "ppo", "discount": 1.5}, "agent.discount from 0 to 1"),
        ({"name": "ppo", "hidden": []}, "agent.hidden"),
        ({"name": "ppo", "total_steps": 0}, "agent.total_steps 1 or more"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        agent_settings(options)
