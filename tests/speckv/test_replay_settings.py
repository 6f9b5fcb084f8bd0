# SPDX-License-Identifier: Apache-2.0
"""Replay: acceptances drawn anew, and what is refused."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from speckv.cost import CompiledCost
from speckv.errors import ConfigError, CostTableError, TraceError
from speckv.replay import CompiledTraces, ReplayBatch
from speckv.traces import NO_TOKEN, TraceSequence
from speckv.types import GAMMA_MAX
from tests.fakes_traces import compile_both, make_cost_table, make_sequence, make_traces, one_slot, random_traces

# --- Rejection sampling ----------------------------------------------------------------------------------------------


def test_redrawn_draft_stops_at_the_end_of_text_it_gets_right() -> None:
    sequence = make_sequence([0] * 5, finish="eos", accept_prob=np.ones(5, np.float32))
    compiled = CompiledTraces(make_traces([sequence], max_new_tokens=9, sampled=True))
    accepted, stop = compiled.redraw(0, np.random.default_rng(0))
    assert accepted.tolist() == stop.tolist() == [5, 4, 3, 2, 1]
    cut = make_sequence([0] * 5, accept_prob=np.ones(5, np.float32))
    _, stop = CompiledTraces(make_traces([cut], max_new_tokens=5, sampled=True)).redraw(0, np.random.default_rng(0))
    assert stop.tolist() == [GAMMA_MAX] * 5


def test_redrawn_acceptance_follows_the_probabilities() -> None:
    probability = np.full(12, 0.75, np.float32)
    traces = make_traces([make_sequence([0] * 12, accept_prob=probability)], max_new_tokens=12, sampled=True)
    compiled = CompiledTraces(traces)
    # 4,000 draws of twelve bits: the mean of 48,000 lies within 0.01 of 0.75 but for a chance of 4e-7.
    rng = np.random.default_rng(0)
    bits = np.stack([compiled.redraw(0, rng)[0] for _ in range(4000)]) > 0
    assert bits.mean() == pytest.approx(0.75, abs=0.01)
    assert abs(np.corrcoef(bits[:, 3], bits[:, 4])[0, 1]) < 0.08


def test_slots_draw_apart_and_reproducibly() -> None:
    compiled, cost = compile_both(random_traces(num_prompts=4, sampled=True))

    def play(slots: int, seed: int) -> list[int]:
        batch = ReplayBatch(compiled, cost, slots, acceptance="rejection", rng=np.random.default_rng(seed))
        batch.assign(np.arange(slots), np.full(slots, batch.playable[0]))
        return [int(count) for count in batch.step(np.full(slots, 16)).num_accepted]

    assert play(8, seed=1) == play(8, seed=1)
    assert play(8, seed=1)[:3] == play(3, seed=1)
    assert len(set(play(16, seed=1))) > 1


def test_greedy_text_keeps_its_recorded_acceptance() -> None:
    compiled, cost = compile_both(random_traces())
    batch = ReplayBatch(compiled, cost, 1, acceptance="rejection")
    assert batch.acceptance == "recorded"


def test_rejection_needs_a_generator() -> None:
    compiled, cost = compile_both(random_traces(sampled=True))
    batch = ReplayBatch(compiled, cost, 1, acceptance="rejection")
    with pytest.raises(ConfigError, match="Expected a random generator"):
        batch.assign([0], [0])


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"acceptance": "record"}, "got 'record'. Did you mean 'recorded'"),
        ({"budget": 1}, "from 2 to the recording's 40 tokens, got 1"),
        ({"budget": 41}, "from 2 to the recording's 40 tokens, got 41"),
    ],
)
def test_settings_out_of_range(arguments: dict[str, object], message: str) -> None:
    compiled, cost = compile_both(random_traces(max_new_tokens=40))
    with pytest.raises(ConfigError, match=message):
        ReplayBatch(compiled, cost, 1, **arguments)  # type: ignore[arg-type]


def test_costs_must_reach_as_deep_and_wide() -> None:
    compiled = CompiledTraces(random_traces())
    with pytest.raises(ConfigError, match="at least gamma_max 16, got 8"):
        ReplayBatch(compiled, CompiledCost(make_cost_table(), compiled.compression_names, gamma_max=8), 1)
    with pytest.raises(CostTableError, match=r"compiled for \['nf4'\] as well, got \['fp16'\]"):
        ReplayBatch(compiled, CompiledCost(make_cost_table(), ["fp16"]), 1)


def test_idle_slots_do_not_step() -> None:
    compiled, cost = compile_both(random_traces())
    with pytest.raises(ConfigError, match="got an idle one"):
        ReplayBatch(compiled, cost, 1).step(np.array([0]))
    batch = one_slot(make_sequence([1, 1]), 2)
    batch.step(np.array([0]))
    with pytest.raises(ConfigError, match="got an idle one"):
        batch.step(np.array([0]))


@pytest.mark.parametrize(
    ("gammas", "message"),
    [
        (np.array([-1]), "from 0 to 16, got -1 to -1"),
        (np.array([17]), "from 0 to 16, got 17 to 17"),
        (np.array([1.0]), "got shape"),
        (np.array([1, 2]), r"Expected 1 whole speculation lengths, got shape \(2,\)"),
    ],
)
def test_gammas_out_of_range(gammas: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        one_slot(make_sequence([1, 1, 1]), 3).step(gammas)


def _spoil(field: str, value: int) -> Callable[[TraceSequence], TraceSequence]:
    def spoil(sequence: TraceSequence) -> TraceSequence:
        column = getattr(sequence, field).copy()
        column[3] = value
        return replace(sequence, **{field: column})

    return spoil


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("accepted_length", -1, "accepted lengths from 0 to 16"),
        ("accepted_length", 3, "none past the end"),
        ("eos_stop", 1, "stops from 0 to 16, none before the accepted length"),
        ("eos_stop", 17, "stops from 0 to 16"),
        ("draft_tokens", NO_TOKEN, "a draft to stop at once where it proposes nothing"),
        ("eos_stop", 16, "a draft to stop at the end of text that it got right"),
    ],
)
def test_recordings_that_contradict_themselves(field: str, value: int, message: str) -> None:
    sequence = _spoil(field, value)(make_sequence([1] * 5, finish="eos"))
    with pytest.raises(TraceError, match=f"'p0'.*{message}.* at position 3 of 5"):
        CompiledTraces(make_traces([sequence], max_new_tokens=8))
