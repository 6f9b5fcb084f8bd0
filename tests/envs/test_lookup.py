# SPDX-License-Identifier: Apache-2.0
"""The environments on recordings of a draft that often has nothing to propose."""

from dataclasses import replace

import numpy as np
import pytest

from speckv.decoding import PromptLookup
from speckv.envs import DraftStoppingEnv, DraftStoppingVectorEnv, GammaSelectionEnv, GammaSelectionVectorEnv
from speckv.profiling.lookup import with_lookup
from speckv.traces import TraceSet
from tests.fakes_traces import EOS, make_cost_table, make_sequence, make_traces

BUDGET = 30


def lookup_traces() -> TraceSet:
    rng = np.random.default_rng(5)
    sequences = []
    for number in range(6):
        prompt, tokens = rng.integers(2, 8, 12), rng.integers(2, 8, BUDGET).astype(np.int32)
        recorded = make_sequence([0] * BUDGET, prompt_len=12, prompt_id=f"p{number}", seed=number)
        recorded = replace(recorded, tokens=tokens)
        sequences.append(with_lookup(recorded, prompt.tolist(), PromptLookup(10), {EOS}))
    silent = np.concatenate([s.eos_stop == 0 for s in sequences])
    assert 0.2 < silent.mean() < 0.8
    return make_traces(sequences, max_new_tokens=BUDGET)


@pytest.mark.parametrize(
    ("scalar", "vector", "actions"),
    [(GammaSelectionEnv, GammaSelectionVectorEnv, 17), (DraftStoppingEnv, DraftStoppingVectorEnv, 2)],
)
def test_any_actions_emit_the_whole_text(
    scalar: type[GammaSelectionEnv] | type[DraftStoppingEnv],
    vector: type[GammaSelectionVectorEnv] | type[DraftStoppingVectorEnv],
    actions: int,
) -> None:
    traces = lookup_traces()
    many = vector(4, traces=traces, cost=make_cost_table())
    singles = [scalar(traces=traces, cost=make_cost_table()) for _ in range(4)]
    many.reset(seed=1)
    for k, env in enumerate(singles):
        env.reset(seed=1 + k)
    rng, finished = np.random.default_rng(0), 0
    for _ in range(200):
        chosen = rng.integers(0, actions, 4)
        observations, rewards, *_ = many.step(chosen)
        for k, env in enumerate(singles):
            observation, reward, ended, cut, info = env.step(chosen[k])
            assert rewards[k] == reward
            if ended or cut:
                finished += 1
                assert info["decode"]["num_tokens"] == BUDGET - 1
                assert info["decode"]["num_accepted"] <= info["decode"]["num_drafted"]
                observation, _ = env.reset()
            np.testing.assert_array_equal(observations[k], observation)
    assert finished > 5
