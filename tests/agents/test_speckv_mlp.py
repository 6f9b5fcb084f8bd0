# SPDX-License-Identifier: Apache-2.0
"""The SpecKV paper's rule on our replay: with a network known by heart, what it learns from, and what it refuses."""

import numpy as np
import pytest

from speckv.agents.registry import TrainingData, agent_settings, make_controller
from speckv.agents.speckv_mlp.controllers import FEATURES, SpecKVMlp, SpecKVMlpCost, acceptance_inputs
from speckv.agents.speckv_mlp.fit import acceptance_samples
from speckv.cost.times import StepTimes
from speckv.errors import ConfigError
from speckv.observation import SCHEMA
from speckv.replay import VisitedStates, replay_controller
from speckv.runtime.network import Network
from tests.fakes_runs import toy_traces
from tests.fakes_traces import compile_both, make_cost_table

GAMMAS = (2, 4, 6, 8)


def known(bias: float, per_gamma: float = 0.0) -> Network:
    """Log-odds `bias + per_gamma * gamma`, whatever the features say."""
    weight = np.zeros((1, len(FEATURES) + 1), np.float32)
    weight[0, -1] = 16.0 * per_gamma
    return Network([weight], [np.array([bias], np.float32)])


def observation(**values: float) -> np.ndarray:
    row = np.zeros((1, SCHEMA.size), np.float32)
    for name, value in {"bits_per_weight": 1.0, **values}.items():
        row[0, SCHEMA.index(name)] = value
    return row


def test_without_a_price_the_largest_gamma_wins() -> None:
    rule = SpecKVMlp(known(0.0), GAMMAS)
    # 0.5 * gamma + 1
    assert rule.expected_tokens(observation())[0] == pytest.approx([2.0, 3.0, 4.0, 5.0])
    assert rule.act_batch(observation()).tolist() == [8]
    # Acceptance that falls fast enough turns it round: 4 * s(0.4), 8 * s(-1.8) with the logistic function s.
    assert SpecKVMlp(known(2.6, -0.55), GAMMAS).act_batch(observation()).tolist() == [4]


def test_with_a_price_it_drafts_what_pays() -> None:
    table = make_cost_table()
    times = StepTimes.of(table, ["fp16", "nf4"])
    cheap, hopeless = known(3.0), known(-3.0)
    every = tuple(range(17))
    for network, expected in ((cheap, 16), (hopeless, 0)):
        rule = SpecKVMlpCost(SpecKVMlp(network, every), times)
        assert rule.act_batch(observation()).tolist() == [expected]
    # At even odds, fp16: (0.5 * g + 1) / (8 + 0.25 * g + g) is (1 + 1) / 10.5 at 2 and 5 / 18 at 8.
    assert SpecKVMlpCost(SpecKVMlp(known(0.0), GAMMAS), times).act_batch(observation()).tolist() == [8]
    # Without 0 on offer, the least it has.
    assert SpecKVMlpCost(SpecKVMlp(hopeless, GAMMAS), times).act_batch(observation()).tolist() == [2]


def test_it_reads_the_papers_features_and_gamma() -> None:
    row = observation(
        draft_entropy_mean=1.0, draft_confidence_mean=0.5, draft_entropy_max=2.0, draft_confidence_min=0.25
    )
    assert acceptance_inputs(row, [8]).tolist() == [[1.0, 0.5, 2.0, 0.25, 1.0, 0.5]]


def test_samples_are_shares_of_a_drawn_gamma() -> None:
    states = VisitedStates(
        observations=np.repeat(observation(), 3, axis=0),
        places=np.arange(3),
        limits=np.array([16, 3, 3]),
        accepted=np.array([3, 3, 1]),
    )
    samples = acceptance_samples(states, (0, 4), np.random.default_rng(0))
    # 3 of 4; 3 of the 3 that were left, which says nothing of a fourth; 1 of 4, rejected in time.
    assert samples.labels[:, 0].tolist() == [0.75, 0.75, 0.25]
    assert samples.known[:, 0].tolist() == [1.0, 0.0, 1.0]
    assert (samples.inputs[:, -1] == 0.25).all()


def test_it_learns_that_easy_prompts_deserve_longer_drafts() -> None:
    traces = toy_traces(24)
    data = TrainingData(train=traces.select(split="train"), cost=make_cost_table(), seed=0)
    _, settings = agent_settings(
        {"name": "speckv_mlp_cost", "epochs": 60, "batch_size": 256, "gammas": [1, 2, 4, 8, 16]}
    )
    controller = make_controller("speckv_mlp_cost", settings, data)
    test = traces.select(split="test", compressions=["fp16"])
    record = replay_controller(controller, *compile_both(test))
    easy = np.array([int(name[1:]) % 2 == 0 for name in record.prompt_ids])
    drafted = record.num_drafted / record.num_steps
    assert drafted[easy].min() > drafted[~easy].max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gammas": []}, "gammas ascending"),
        ({"gammas": [0]}, "gammas to list one above 0"),
        ({"gammas": [4, 2]}, "gammas ascending"),
        ({"gammas": [2, 2]}, "gammas ascending"),
        ({"gammas": [2, 17]}, "gammas ascending"),
        ({"hidden": []}, "agent.hidden"),
        ({"epochs": 0}, "agent.epochs 1 or more"),
        ({"learning_rate": 0.0}, "agent.learning_rate above 0"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, object], message: str) -> None:
    for name in ("speckv_mlp", "speckv_mlp_cost"):
        with pytest.raises(ConfigError, match=message):
            agent_settings({"name": name, **options})
