# SPDX-License-Identifier: Apache-2.0
"""Controllers that decide once a request."""

import numpy as np
import pytest

from speckv.agents.constants import fit_per_request
from speckv.agents.per_request import PerRequestGamma, PerRequestSettings
from speckv.agents.registry import TrainingData, agent_settings, make_controller
from speckv.errors import ConfigError
from speckv.evaluation.replays import compile_pair
from speckv.replay import replay_controller
from tests.fakes_settings import shipped
from tests.fakes_traces import make_cost_table, random_traces


def test_the_first_decision_stands() -> None:
    compiled, cost = compile_pair(random_traces(seed=2), make_cost_table())
    _, settings = agent_settings({"name": "transformers_heuristic"})
    data = TrainingData(train=compiled.traces, cost=make_cost_table(), seed=0)
    alone = replay_controller(make_controller("transformers_heuristic", settings, data), compiled, cost)
    kept = replay_controller(PerRequestGamma(make_controller("transformers_heuristic", settings, data)), compiled, cost)
    assert ((kept.gamma_counts > 0).sum(axis=1) == 1).all()
    assert ((alone.gamma_counts > 0).sum(axis=1) > 1).any()


def test_with_nothing_to_tell_requests_apart_it_is_the_best_fixed_gamma() -> None:
    """An enormous ridge leaves the constants: the least mean seconds a token, requests weighing as their tokens."""
    traces, cost = random_traces(num_prompts=12, seed=4), make_cost_table()
    compiled, compiled_cost = compile_pair(traces, cost)
    controller = fit_per_request(shipped(PerRequestSettings, ridge=1e9), TrainingData(train=traces, cost=cost, seed=0))
    record = replay_controller(controller, compiled, compiled_cost)
    _, settings = agent_settings({"name": "best_fixed"})
    best = make_controller("best_fixed", settings, TrainingData(train=traces, cost=cost, seed=0))
    np.testing.assert_array_equal(record.seconds, replay_controller(best, compiled, compiled_cost).seconds)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="ridge above 0"):
        shipped(PerRequestSettings, ridge=0.0)
