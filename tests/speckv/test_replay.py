# SPDX-License-Identifier: Apache-2.0
"""Replay: hand-run sequences, a slow reference that follows the definitions, and what must hold for any policy."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speckv.cost import CostTable
from speckv.observation import History, StaticContext, StepBatch, observe, update_history
from speckv.replay import ReplayBatch, ReplayRecord, replay_fixed, replay_policy
from speckv.traces import TraceSequence
from speckv.types import BITS_PER_WEIGHT, GAMMA_MAX, FloatArray, StepOutcome
from tests.fakes_traces import EOS, compile_both, make_cost_table, make_sequence, make_traces, one_slot, random_traces

SLOPE = 2.0**-10


def run(batch: ReplayBatch, *gammas: int) -> list[tuple[int, int, int, int]]:
    rows = []
    for gamma in gammas:
        step = batch.step(np.array([gamma]))
        rows.append(
            (int(step.num_drafted[0]), int(step.num_accepted[0]), int(step.num_tested[0]), int(step.num_emitted[0]))
        )
    return rows


def test_hand_run_until_the_budget() -> None:
    # Position          0  1  2  3  4  5  6  7
    batch = one_slot(make_sequence([0, 1, 1, 0, 1, 1, 1, 1]), 8)
    # From 1: two of three drafts are right, the third is rejected and corrected: lands at 4.
    assert run(batch, 3) == [(3, 2, 3, 3)]
    # From 4: plain decoding. From 5: two tokens are left after the next, so at most 2 are drafted of 16.
    assert run(batch, 0, 16) == [(0, 0, 0, 1), (2, 2, 2, 3)]
    assert not batch.running[0]


def test_budget_truncates() -> None:
    batch = one_slot(make_sequence([1] * 6), 6)
    step = batch.step(np.array([16]))
    assert (step.num_drafted[0], step.num_emitted[0]) == (4, 5)
    assert (step.truncated[0], step.terminated[0]) == (True, False)


def test_accepted_end_of_text_has_no_bonus() -> None:
    # Four tokens, the last one ends the text; the draft gets it right and stops there.
    batch = one_slot(make_sequence([1] * 4, finish="eos"), 100)
    step = batch.step(np.array([16]))
    assert (step.num_drafted[0], step.num_accepted[0], step.num_emitted[0]) == (3, 3, 3)
    assert (step.truncated[0], step.terminated[0]) == (False, True)


def test_end_of_text_as_the_bonus() -> None:
    batch = one_slot(make_sequence([1] * 4, finish="eos"), 100)
    assert run(batch, 2) == [(2, 2, 2, 3)]
    assert not batch.running[0]


def test_wrong_end_of_text_stops_the_draft() -> None:
    # The draft would end the text at position 2: drafting from 1 stops after two tokens, the second is rejected.
    batch = one_slot(make_sequence([1, 1, 0, 1, 1, 1, 1, 1], eos_drafts=[2]), 8)
    assert run(batch, 16) == [(2, 1, 2, 2)]


def test_seconds_by_hand() -> None:
    batch = one_slot(make_sequence([1, 0, 0, 0, 1, 1, 1, 1], prompt_len=63), 8)
    # Context 64, the reference: two drafts, none accepted: draft(1) + draft(1) + verify(3) = 1 + 1 + 8.5.
    assert batch.step(np.array([2])).seconds[0] == 10.5
    # Plain decoding twice, at contexts 65 and 66.
    assert batch.step(np.array([0])).seconds[0] == 8.0 + SLOPE
    assert batch.step(np.array([0])).seconds[0] == 8.0 + 2 * SLOPE
    # The draft lags by two: draft(3) + draft(1) + verify(3) = 1.5 + 1 + 8.5 at context 67, three passes.
    assert batch.history.draft_lag[0] == 2
    assert batch.step(np.array([2])).seconds[0] == 11.0 + 9 * SLOPE


def test_the_first_draft_reads_the_prompt_where_nobody_did() -> None:
    entries = {name: replace(entry, draft_prompt_s=0.5) for name, entry in make_cost_table().entries.items()}
    sequence = make_sequence([1, 0, 0, 0, 1, 1, 1, 1], prompt_len=63)
    batch = one_slot(sequence, 8, cost=make_cost_table(entries=entries))
    usual = one_slot(sequence, 8)
    more = [batch.step(np.array([g])).seconds[0] - usual.step(np.array([g])).seconds[0] for g in (0, 2, 0, 2)]
    assert more == [0.0, 63 * 0.5, 0.0, 0.0]


def test_deciding_is_charged_at_every_step() -> None:
    compiled, cost = compile_both(random_traces())
    free = replay_policy(compiled, cost, lambda o: np.full(len(o), 2))
    charged = replay_policy(compiled, cost, lambda o: np.full(len(o), 2), controller_s=0.5)
    np.testing.assert_allclose(charged.seconds, free.seconds + 0.5 * free.num_steps, rtol=1e-12)


def test_smaller_budget_cuts_the_text() -> None:
    sequence = make_sequence([1] * 6, finish="eos")
    batch = one_slot(sequence, 10, budget=4)
    step = batch.step(np.array([16]))
    assert (step.num_drafted[0], step.num_emitted[0]) == (2, 3)
    assert step.truncated[0]
    # A text that ends exactly at the budget still terminates.
    assert one_slot(sequence, 10, budget=6).step(np.array([16])).terminated[0]


def test_recording_that_stopped_before_the_budget() -> None:
    batch = one_slot(make_sequence([1] * 5), 100)
    assert run(batch, 16) == [(3, 3, 3, 4)]


def test_one_token_output_has_no_step() -> None:
    traces = make_traces([make_sequence([1], finish="eos"), make_sequence([1, 1, 1], prompt_id="p1")], max_new_tokens=3)
    compiled, cost = compile_both(traces)
    assert ReplayBatch(compiled, cost, 1).playable.tolist() == [1]
    record = replay_fixed(compiled, cost, 0)
    assert record.num_steps.tolist() == [0, 2]
    assert record.seconds[0] == 0.0


# --- A slow reference ------------------------------------------------------------------------------------------------


@dataclass
class Reference:
    """Follows the definitions with Python numbers and what the draft really proposes."""

    sequence: TraceSequence
    table: CostTable
    budget: int
    position: int = 1
    lag: int = 0

    def step(self, gamma: int) -> StepOutcome:
        sequence, position = self.sequence, self.position
        text = sequence.tokens.tolist()[: self.budget]
        drafted, signals = sequence.draft_from(position, min(gamma, self.budget - position - 1))
        ends = np.flatnonzero(drafted == EOS)
        count = int(ends[0]) + 1 if len(ends) else len(drafted)
        accepted = 0
        while accepted < count and drafted[accepted] == text[position + accepted]:
            accepted += 1
        # The target's own token follows, unless the accepted one ended the text.
        emitted = text[position : position + accepted + 1]
        seconds = float(self.table.step_seconds(sequence.compression, count, self.lag, sequence.prompt_len + position))
        self.lag = self.lag + 1 if count == 0 else int(accepted == count)
        self.position += len(emitted)
        newest = sequence.target_signals[self.position - 1]
        finish = None
        if self.position == len(text):
            finish = "eos" if text[-1] == EOS else "length"
        return StepOutcome(
            gamma=gamma,
            num_drafted=count,
            num_accepted=accepted,
            num_tested=min(accepted + 1, count),
            num_emitted=len(emitted),
            draft_signals=signals[:count],
            target_entropy=float(newest[0]),
            target_confidence=float(newest[1]),
            seconds=seconds,
            finish=finish,
        )


@settings(max_examples=25)
@given(seed=st.integers(0, 2**16), budget=st.sampled_from([30, 30, 12]))
def test_equals_the_reference_step_by_step(seed: int, budget: int) -> None:
    traces, table = random_traces(num_prompts=3, max_new_tokens=30, seed=seed), make_cost_table()
    compiled, cost = compile_both(traces, table)
    batch = ReplayBatch(compiled, cost, len(compiled), budget=budget)
    batch.assign(np.arange(len(compiled)), np.arange(len(compiled)))
    references = [Reference(sequence, table, budget) for sequence in traces.sequences]
    pasts = [History.start(1, *sequence.target_signals[0, :2]) for sequence in traces.sequences]
    rng = np.random.default_rng(seed)
    while (running := batch.running).any():
        observed = batch.observe()
        gammas = rng.integers(0, GAMMA_MAX + 1, len(compiled))
        step = batch.step(gammas, running)
        for row in np.flatnonzero(running):
            sequence = traces.sequences[row]
            static = StaticContext.of(
                [sequence.compression], {sequence.compression: table.cost_ratio(sequence.compression)}, [budget]
            )
            np.testing.assert_array_equal(observed[row], observe(pasts[row], static)[0])
            expected = references[row].step(int(gammas[row]))
            pasts[row] = update_history(pasts[row], StepBatch.from_outcome(expected))
            for name in ("num_drafted", "num_accepted", "num_tested", "num_emitted"):
                assert getattr(step, name)[row] == getattr(expected, name), name
            assert step.seconds[row] == pytest.approx(expected.seconds, rel=1e-12)
            assert step.terminated[row] == (expected.finish == "eos")
            assert step.truncated[row] == (expected.finish == "length")
        assert all(not getattr(step, name)[~running].any() for name in step.__slots__ if name != "context")


# --- What holds for any policy ---------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(seed=st.integers(0, 2**16), acceptance=st.sampled_from(["recorded", "rejection"]))
def test_any_policy_emits_exactly_the_text(seed: int, acceptance: str) -> None:
    compiled, cost = compile_both(random_traces(num_prompts=4, max_new_tokens=25, sampled=True, seed=seed))
    rng = np.random.default_rng(seed)
    record = replay_policy(
        compiled,
        cost,
        lambda o: rng.integers(0, GAMMA_MAX + 1, len(o)),
        acceptance=acceptance,
        rng=np.random.default_rng(seed),
        log=True,
    )
    assert record.num_tokens.tolist() == (compiled.length - 1).tolist()
    assert np.all(record.num_steps <= record.num_tokens)
    assert np.all(record.num_accepted <= record.num_tested)
    assert np.all(record.num_tested <= record.num_drafted)
    assert record.log is not None
    for row in range(len(compiled)):
        mine = record.log.sequence == row
        # Each step starts where the one before landed, and the last one lands on the end.
        ends = record.log.position[mine] + record.log.num_emitted[mine]
        assert [1, *ends.tolist()] == [*record.log.position[mine].tolist(), compiled.length[row]]
        assert record.log.seconds[mine].sum() == pytest.approx(record.seconds[row])
        assert record.log.num_accepted[mine].sum() == record.num_accepted[row]
        assert (
            np.bincount(record.log.gamma[mine], minlength=GAMMA_MAX + 1).tolist() == record.gamma_counts[row].tolist()
        )


def test_observations_ignore_what_was_never_tested() -> None:
    hits = np.tile([1, 1, 0], 8)
    sequence = make_sequence(hits, seed=3)
    # From 1, gamma 16 tests positions 1 and 2, lands on 3; gamma 1 there tests 3, lands on 5.
    tested = [1, 2, 3]
    signals = sequence.draft_signals.copy()
    signals[[p for p in range(len(hits)) if p not in tested]] += 0.125
    other = replace(sequence, draft_signals=signals, rollout_signals=sequence.rollout_signals + 0.125)
    seen = []
    for each in (sequence, other):
        batch = one_slot(each, len(hits))
        batch.step(np.array([16]))
        after_first = batch.observe()
        batch.step(np.array([1]))
        seen.append(np.concatenate([after_first, batch.observe()]))
    np.testing.assert_array_equal(seen[0], seen[1])


def test_observations_ignore_the_future_text() -> None:
    sequence = make_sequence([1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 1], seed=3)
    target = sequence.target_signals.copy()
    target[3:] += 0.125  # beyond the newest token after one step
    other = replace(sequence, target_signals=target)
    seen = []
    for each in (sequence, other):
        batch = one_slot(each, 12)
        batch.step(np.array([16]))
        seen.append(batch.observe())
    np.testing.assert_array_equal(seen[0], seen[1])


def test_policy_sees_the_same_row_for_the_same_sequence() -> None:
    traces = random_traces(num_prompts=5)
    compiled, cost = compile_both(traces)
    bits = np.array([BITS_PER_WEIGHT[name] / 16 for name in compiled.compressions], np.float32)

    def policy(observations: FloatArray) -> np.ndarray:
        np.testing.assert_array_equal(observations[:, 13], bits)
        return np.full(len(observations), 3)

    assert replay_policy(compiled, cost, policy).prompt_ids == compiled.prompt_ids


def test_fixed_policies() -> None:
    compiled, cost = compile_both(random_traces())
    plain = replay_fixed(compiled, cost, 0)
    assert plain.block_efficiency == 1.0
    assert plain.num_drafted.sum() == 0
    assert np.isnan(plain.acceptance_rate)
    fixed = replay_fixed(compiled, cost, 4, log=True)
    assert fixed.gamma_counts[:, 4].tolist() == fixed.num_steps.tolist()
    assert (fixed.num_accepted <= fixed.num_tested).all()
    assert (fixed.num_tested <= fixed.num_drafted).all()
    assert fixed.throughput == pytest.approx(fixed.num_tokens.sum() / fixed.seconds.sum())


def test_slots_can_be_given_new_sequences() -> None:
    compiled, cost = compile_both(random_traces(num_prompts=3))
    playable = ReplayBatch(compiled, cost, 1).playable
    batch = ReplayBatch(compiled, cost, 2)
    batch.assign([0, 1], playable[[0, 1]])
    batch.step(np.array([3, 5]))
    batch.assign([1], playable[[2]])
    fresh = ReplayBatch(compiled, cost, 1)
    fresh.assign([0], playable[[2]])
    np.testing.assert_array_equal(batch.observe()[1], fresh.observe()[0])
    np.testing.assert_array_equal(batch.first_observations[playable[2]], fresh.observe()[0])
    assert batch.history.emitted[0] > 1


def test_slots_can_sit_a_step_out() -> None:
    compiled, cost = compile_both(random_traces(num_prompts=3))
    pair = ReplayBatch(compiled, cost, 2)
    playable = pair.playable[:2]
    pair.assign([0, 1], playable)
    pair.step(np.array([2, 2]))
    before = pair.observe()
    step = pair.step(np.array([3, 3]), np.array([False, True]))
    assert step.num_emitted[0] == step.seconds[0] == 0
    assert step.num_emitted[1] > 0
    np.testing.assert_array_equal(pair.observe()[0], before[0])
    assert np.any(pair.observe()[1] != before[1])


def test_joined_records() -> None:
    compiled, cost = compile_both(random_traces(num_prompts=3))
    whole = replay_fixed(compiled, cost, 2, log=True)
    twice = ReplayRecord.concatenate([whole, whole])
    assert twice.prompt_ids == whole.prompt_ids * 2
    assert twice.seconds.sum() == pytest.approx(2 * whole.seconds.sum())
    assert whole.log is not None
    assert twice.log is not None
    assert twice.log.sequence.max() == 2 * len(compiled) - 1
    assert ReplayRecord.concatenate([whole, replay_fixed(compiled, cost, 2)]).log is None
