# SPDX-License-Identifier: Apache-2.0
"""The clairvoyant optimum against every sequence of decisions there is."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speckv.cost import CompiledCost, CostEntry, CostTable
from speckv.replay import CompiledTraces, clairvoyant, replay_fixed, replay_policy
from speckv.traces import TraceSequence
from speckv.types import GAMMA_MAX
from tests.fakes_traces import make_cost_table, make_sequence, make_traces, random_sequence, random_traces


def least_seconds(sequence: TraceSequence, table: CostTable, budget: int) -> float:
    """Tries every sequence of decisions."""
    end = min(len(sequence.tokens), budget)
    limit = budget if sequence.finish == "eos" and len(sequence.tokens) <= budget else end
    first_s = table.entry(sequence.compression).draft_prompt_s * sequence.prompt_len

    @cache
    def seconds_of(drafted: int, lag: int, position: int) -> float:
        return float(table.step_seconds(sequence.compression, drafted, lag, sequence.prompt_len + position))

    def least(position: int, lag: int, first_s: float) -> float:
        if position >= end:
            return 0.0
        deepest = max(0, min(GAMMA_MAX, limit - position - 1, int(sequence.eos_stop[position])))
        totals = []
        for drafted in range(deepest + 1):
            accepted = min(drafted, int(sequence.accepted_length[position]))
            next_lag = lag + 1 if drafted == 0 else int(accepted == drafted)
            rest = least(min(position + accepted + 1, end), next_lag, 0.0 if drafted else first_s)
            totals.append(seconds_of(drafted, lag, position) + rest + (first_s if drafted else 0.0))
        return min(totals)

    return least(1, 0, first_s)


def random_table(rng: np.random.Generator) -> CostTable:
    """Times in which every kind of decision is sometimes best: a wide pass may cost far more, or less."""
    entry = CostEntry(
        compression="fp16",
        dtype="float16",
        reference_context=16,
        draft_widths=(1, 2, 4),
        draft_s=np.cumsum(rng.uniform(0.01, 2.0, 3)).tolist(),
        draft_context_slope_s=0.0001,
        verify_widths=(1, 3, 17),
        verify_s=rng.uniform(0.2, 6.0, 3).tolist(),
        verify_context_slope_s=0.001 * rng.random(),
        draft_prompt_s=float(rng.choice([0.0, 0.001, 0.05])),
    )
    return CostTable(name="random", kind="fitted", machine={}, entries={"fp16": entry})


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), budget=st.sampled_from([8, 8, 6]))
def test_equals_brute_force(seed: int, budget: int) -> None:
    rng = np.random.default_rng(seed)
    table = random_table(rng)
    sequences = [
        random_sequence(rng, max_new_tokens=8, prompt_id=f"p{k}", task="code", split="train", compression="fp16")
        for k in range(3)
    ]
    compiled = CompiledTraces(make_traces(sequences, max_new_tokens=8))
    record = clairvoyant(compiled, CompiledCost(table, ["fp16"]), budget=budget)
    expected = [least_seconds(sequence, table, budget) for sequence in sequences]
    np.testing.assert_allclose(record.seconds, expected, rtol=1e-9)


def test_no_policy_is_faster() -> None:
    compiled = CompiledTraces(random_traces(num_prompts=6))
    cost = CompiledCost(make_cost_table(), compiled.compression_names)
    best = clairvoyant(compiled, cost)
    assert best.num_tokens.tolist() == (compiled.length - 1).tolist()
    rng = np.random.default_rng(0)
    rivals = [replay_fixed(compiled, cost, gamma) for gamma in range(GAMMA_MAX + 1)]
    rivals.append(replay_policy(compiled, cost, lambda o: rng.integers(0, 5, len(o))))
    for rival in rivals:
        assert np.all(best.seconds <= rival.seconds * (1 + 1e-12))


def flat_table(draft_s: float, verify_s: float) -> CostTable:
    entry = CostEntry(
        compression="fp16",
        dtype="float16",
        reference_context=0,
        draft_widths=(1, 2),
        draft_s=(draft_s, draft_s),
        draft_context_slope_s=0.0,
        verify_widths=(1, 2),
        verify_s=(verify_s, verify_s),
        verify_context_slope_s=0.0,
    )
    return CostTable(name="flat", kind="fitted", machine={}, entries={"fp16": entry})


@pytest.mark.parametrize(
    ("draft_s", "gammas", "seconds"),
    [
        # From 1, three right drafts land on 5 in 3 + 4 s; there one draft is all that fits before the end: 1 + 4 s.
        (1.0, [3, 1], 12.0),
        # A draft costs as much as the pass it saves: nothing is gained, so nothing is drafted.
        (4.0, [0, 0, 0, 0, 0, 0], 24.0),
    ],
)
def test_by_hand_and_ties_to_the_smaller_gamma(draft_s: float, gammas: list[int], seconds: float) -> None:
    # Position                0  1  2  3  4  5  6
    sequence = make_sequence([1, 1, 1, 1, 0, 1, 1])
    compiled = CompiledTraces(make_traces([sequence], max_new_tokens=7))
    record = clairvoyant(compiled, CompiledCost(flat_table(draft_s, 4.0), ["fp16"]), log=True)
    assert record.log is not None
    assert record.log.gamma.tolist() == gammas
    assert record.seconds.tolist() == [seconds]


def test_lag_is_weighed() -> None:
    # One draft pass over one or two tokens takes 1 s, over three 21 s, over four 41 s; a target pass takes 4 s.
    flat = flat_table(1.0, 4.0).entries["fp16"]
    entry = replace(flat, draft_widths=(1, 2, 3), draft_s=(1.0, 1.0, 21.0), draft_context_slope_s=0.0)
    table = CostTable(name="lag", kind="fitted", machine={}, entries={"fp16": entry})
    # Position                0  1  2  3  4  5  6  7  8
    sequence = make_sequence([1, 0, 0, 1, 1, 1, 1, 1, 1])
    compiled = CompiledTraces(make_traces([sequence], max_new_tokens=9))
    record = clairvoyant(compiled, CompiledCost(table, ["fp16"]), log=True)
    assert record.log is not None
    # Plain decoding of both misses would leave the draft two tokens behind, and 21 s for its next pass. A wrong draft
    # at 2, for 1 s, makes it read along: 4, then 1 + 4, then five drafts and a pass, 5 + 4.
    assert record.log.gamma.tolist() == [0, 1, 5]
    assert record.seconds.tolist() == [18.0]


def test_last_token_cannot_be_drafted_for() -> None:
    # Judging a draft would take 1 s and plain decoding takes 4 s, but the budget leaves room for one token alone.
    entry = replace(flat_table(0.5, 4.0).entries["fp16"], verify_s=(4.0, 1.0))
    table = CostTable(name="cheap", kind="fitted", machine={}, entries={"fp16": entry})
    compiled = CompiledTraces(make_traces([make_sequence([1, 1])], max_new_tokens=2))
    record = clairvoyant(compiled, CompiledCost(table, ["fp16"]), log=True)
    assert record.log is not None
    assert record.log.gamma.tolist() == [0]
    assert record.seconds.tolist() == [4.0]


def test_chunks_join(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = CompiledTraces(random_traces(num_prompts=6))
    cost = CompiledCost(make_cost_table(), compiled.compression_names)
    whole = clairvoyant(compiled, cost, log=True)
    monkeypatch.setattr("speckv.replay.optimum._STATES_AT_ONCE", 1)
    single = clairvoyant(compiled, cost, log=True)
    assert single.prompt_ids == whole.prompt_ids
    np.testing.assert_array_equal(single.seconds, whole.seconds)
    np.testing.assert_array_equal(single.gamma_counts, whole.gamma_counts)
