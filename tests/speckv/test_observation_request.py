# SPDX-License-Identifier: Apache-2.0
"""One request's memory equals the arrays of many, to the last bit."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from speckv.observation import (
    History,
    RequestMemory,
    StaticContext,
    StepBatch,
    observe,
    observe_draft,
    summarise_draft,
    update_history,
)
from speckv.types import StepOutcome


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_numbers_equal_arrays(seed: int) -> None:
    rng = np.random.default_rng(seed)
    budget = int(rng.integers(2, 200))
    ratio, bits = float(rng.random()), "nf4"
    static = StaticContext.of([bits], {bits: ratio}, [budget])
    memory = RequestMemory(cost_ratio=ratio, bits_per_weight=4.0, budget=budget)
    target = rng.random(2) * [14.0, 1.0]
    memory.start(*target)
    history = History.start(1, *target)
    for _ in range(12):
        observation = observe(history, static)
        np.testing.assert_array_equal(memory.render(), observation[0])
        depth = int(rng.integers(0, 17))
        signals = (rng.random((depth, 3)) * [14.0, 1.0, 1.0]).astype(np.float32)
        signals[rng.random(depth) < 0.1, 1] = 0.0
        for k in range(depth):
            inside = memory.add_draft(*signals[k].tolist())
            wanted = observe_draft(observation, summarise_draft(signals[np.newaxis, : k + 1])[:, -1])
            np.testing.assert_array_equal(inside, wanted[0])
        accepted = int(rng.integers(0, depth + 1))
        target = rng.random(2) * [14.0, 1.0]
        outcome = StepOutcome(
            gamma=depth,
            num_drafted=depth,
            num_accepted=accepted,
            num_tested=min(accepted + 1, depth),
            num_emitted=accepted + 1,
            draft_signals=signals,
            target_entropy=target[0],
            target_confidence=target[1],
            seconds=1.0,
        )
        memory.end_step(
            num_drafted=depth,
            num_accepted=accepted,
            num_emitted=accepted + 1,
            target_entropy=target[0],
            target_confidence=target[1],
        )
        history = update_history(history, StepBatch.from_outcome(outcome))
