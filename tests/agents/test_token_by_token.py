# SPDX-License-Identifier: Apache-2.0
"""Any controller in the environment that decides token by token: the same steps, tokens and seconds as in replay."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from speckv import envs
from speckv.agents.registry import AGENTS, TrainingData, agent_settings, make_controller
from speckv.agents.token_by_token import TokenByToken
from speckv.replay import replay_controller
from speckv.types import OnlineLearner
from tests.agents.test_agents_contract import OPTIONS
from tests.fakes_traces import compile_both, make_cost_table, random_traces

TABLE = make_cost_table(controller_s=0.0)
# Rules that remember more of a request than the observation tells are told through `learn`, which no environment calls.
FORGETFUL = ["best_fixed", "fixed", "kangaroo", "llama_cpp", "per_request", "speckv_mlp", "speckv_mlp_cost"]
FORGETFUL += ["survival", "survival_stopping", "svip"]


def test_the_list_holds_agents() -> None:
    assert set(FORGETFUL) <= set(AGENTS)


@pytest.mark.parametrize("name", FORGETFUL)
def test_it_decodes_as_in_replay(name: str) -> None:
    traces = random_traces(num_prompts=5, seed=9)
    data = TrainingData(train=traces, cost=TABLE, seed=0)
    controller = make_controller(name, agent_settings({"name": name, **OPTIONS.get(name, {})})[1], data)
    assert not isinstance(controller, OnlineLearner)
    record = replay_controller(controller, *compile_both(traces, TABLE))
    env = gym.make(envs.DRAFT_STOPPING, traces=traces, cost=TABLE, split=None)
    player = TokenByToken(controller)
    for row in range(len(traces.sequences)):
        observation, _ = env.reset(seed=0, options={"sequence": row})
        player.reset()
        ended, info = False, dict[str, Any]()
        while not ended:
            observation, _, terminated, truncated, info = env.step(player.act(np.asarray(observation)))
            ended = terminated or truncated
        sums = info["decode"]
        assert (sums["num_tokens"], sums["num_steps"]) == (record.num_tokens[row], record.num_steps[row])
        assert (sums["num_drafted"], sums["num_accepted"]) == (record.num_drafted[row], record.num_accepted[row])
        assert sums["seconds"] == pytest.approx(record.seconds[row])
