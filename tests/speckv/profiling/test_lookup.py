# SPDX-License-Identifier: Apache-2.0
"""A recording with a lookup is derived from any other, and replays what the live engine does, step for step."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from speckv.cost import CompiledCost
from speckv.decoding import Engine, PromptLookup, RequestContext, SamplingConfig, generate
from speckv.errors import TraceError
from speckv.profiling.lookup import with_lookup
from speckv.profiling.prompts import Prompt
from speckv.profiling.record import Recorder
from speckv.replay import CompiledTraces, ReplayBatch, clairvoyant, replay_controller, replay_fixed
from speckv.runtime.constant import ConstantGamma
from speckv.traces import NO_TOKEN, ROLLOUT_LENGTH, TraceSequence, TraceSet
from speckv.types import GAMMA_MAX, FloatArray
from tests.fakes import VOCAB, as_causal, tiny_qwen
from tests.fakes_traces import EOS, make_cost_table, make_sequence, make_traces

ENDS = frozenset({3})
BUDGET = 60
TARGET = as_causal(tiny_qwen(0))
LOOKUP = PromptLookup(VOCAB, longest=3, shortest=1)
SAMPLINGS = [SamplingConfig(), SamplingConfig(mode="gumbel", temperature=0.4, seed=3)]


class Doubtful(ConstantGamma):
    """Goes on while the newest token is likely enough."""

    def go_on(self, observation: FloatArray) -> bool:
        return bool(self.go_on_batch(observation[np.newaxis])[0])

    def go_on_batch(self, observations: FloatArray) -> np.ndarray:
        return observations[:, 19] > 0.6


@cache
def record(sampling: SamplingConfig, count: int = 12) -> list[tuple[list[int], TraceSequence]]:
    """Recordings with a draft model, from which those with the lookup are derived."""
    rng = np.random.default_rng(1)
    prompts = [Prompt(prompt_id=f"p{i}", task="x", text="", split="train") for i in range(count)]
    ids = [rng.integers(3, VOCAB - 12, rng.integers(1, 40)).tolist() for _ in prompts]
    draft = as_causal(tiny_qwen(1, like=TARGET.hf, noise=0.02), "draft")  # type: ignore[arg-type]
    settings = {"eos_token_ids": ENDS, "sampling": sampling, "max_new_tokens": BUDGET}
    recorded = Recorder(TARGET, draft, **settings).record(prompts, ids)  # type: ignore[arg-type]
    derived = [with_lookup(s, p, LOOKUP, ENDS) for p, s in zip(ids, recorded, strict=True)]
    straight = Recorder(TARGET, LOOKUP, **settings).record(prompts, ids)  # type: ignore[arg-type]
    for one, other in zip(derived, straight, strict=True):
        for name in ("tokens", "draft_tokens", "draft_signals", "eos_stop", "rollout_start", "rollout_tokens"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    return list(zip(ids, derived, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda s: s.mode)
def test_live_steps_equal_the_derived_recording(sampling: SamplingConfig) -> None:
    recordings = record(sampling)
    rng = np.random.default_rng(2)
    seen = {"nothing": 0, "ended": 0, "behind a mismatch": 0}
    for prompt, sequence in recordings:
        engine = Engine(TARGET, LOOKUP, eos_token_ids=ENDS, sampling=sampling)
        engine.start(prompt, max_new_tokens=BUDGET, request=sequence.prompt_id)
        while engine.finish is None:
            position, gamma = len(engine.tokens), int(rng.integers(0, 17))
            room = min(gamma, BUDGET - position - 1)
            drafted = min(room, int(sequence.eos_stop[position]))
            accepted = min(drafted, int(sequence.accepted_length[position]))
            emitted = min(accepted + 1, len(sequence.tokens) - position)
            step = engine.step(gamma)
            outcome = step.outcome
            assert (outcome.num_drafted, outcome.num_accepted, outcome.num_emitted) == (drafted, accepted, emitted)
            tokens, found = sequence.draft_from(position, room)
            assert tokens.tolist() == list(step.drafted)
            np.testing.assert_array_equal(found, outcome.draft_signals)  # to the last bit
            seen["nothing"] += drafted == 0 < room
            seen["ended"] += 0 < drafted < room
            seen["behind a mismatch"] += drafted > accepted + 1
        assert engine.tokens == sequence.tokens.tolist()
        assert engine.finish == sequence.finish
    assert min(seen.values()) > 0
    assert seen["nothing"] > 25


@pytest.mark.slow
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda s: s.mode)
@pytest.mark.parametrize("controller", [ConstantGamma(5), Doubtful(7)], ids=["fixed", "stopping"])
def test_a_controller_does_live_what_it_does_in_replay(sampling: SamplingConfig, controller: ConstantGamma) -> None:
    recordings = record(sampling, 4)
    table = make_cost_table()
    compiled = CompiledTraces(make_traces([s for _, s in recordings], max_new_tokens=BUDGET))
    log = replay_controller(controller, compiled, CompiledCost(table, ["fp16"]), log=True).log
    assert log is not None
    context = RequestContext(compression="fp16", cost_ratio=table.cost_ratio("fp16"))
    engine = Engine(TARGET, LOOKUP, eos_token_ids=ENDS, sampling=sampling)
    for row, (prompt, sequence) in enumerate(recordings):
        live = generate(engine, prompt, controller, context=context, max_new_tokens=BUDGET, request=sequence.prompt_id)
        outcomes = [step.outcome for step in live.steps]
        mine = log.sequence == row
        for name in ("gamma", "num_drafted", "num_accepted", "num_emitted"):
            assert [getattr(o, name) for o in outcomes] == getattr(log, name)[mine].tolist()


def test_a_recording_by_hand() -> None:
    # Prompt 5 6 7 8; text 5 6 7 9 8 and the end. [5, 6] was followed by 7; [6, 7] by 8, which is wrong, and [7, 8] by
    # 5, [8, 5] by 6, and so on for ever; afterwards no pair stood in the text before.
    sequence = replace(make_sequence([0] * 6, finish="eos", prompt_len=4), tokens=np.array([5, 6, 7, 9, 8, EOS]))
    found = with_lookup(sequence, [5, 6, 7, 8], PromptLookup(50), {EOS})
    assert found.draft_tokens.tolist() == [NO_TOKEN, NO_TOKEN, 7, 8, NO_TOKEN, NO_TOKEN]
    assert found.accepted_length.tolist() == [0, 0, 1, 0, 0, 0]
    assert found.eos_stop.tolist() == [0, 0, GAMMA_MAX, GAMMA_MAX, 0, 0]
    assert found.accept_prob.tolist() == [0, 0, 1, 0, 0, 0]
    assert found.rollout_start.tolist() == [3]
    assert found.rollout_tokens[0, :5].tolist() == [5, 6, 7, 8, 5]
    assert not found.draft_signals[[0, 1, 4, 5]].any()
    ended = with_lookup(replace(sequence, prompt_len=6), [5, 6, 7, EOS, 8, 4], PromptLookup(50), {EOS})
    assert ended.draft_tokens.tolist() == [NO_TOKEN, NO_TOKEN, 7, EOS, NO_TOKEN, NO_TOKEN]
    assert ended.eos_stop.tolist() == [0, 0, 2, 1, 0, 0]
    assert ended.rollout_tokens.tolist() == [[NO_TOKEN] * ROLLOUT_LENGTH]
    with pytest.raises(TraceError, match="to have 4 tokens as recorded, got 3"):
        with_lookup(sequence, [5, 6, 7], PromptLookup(50), {EOS})


def test_plain_decoding_where_nothing_is_ever_proposed() -> None:
    sequence = replace(make_sequence([0] * 9), tokens=np.arange(20, 29, dtype=np.int32))
    silent = with_lookup(sequence, list(range(10)), PromptLookup(50), {EOS})
    compiled = CompiledTraces(make_traces([silent], max_new_tokens=9))
    cost = CompiledCost(make_cost_table(), ["fp16"])
    plain = replay_fixed(compiled, cost, 0)
    for record_ in (replay_fixed(compiled, cost, 8), clairvoyant(compiled, cost)):
        assert (record_.num_steps[0], record_.seconds[0]) == (plain.num_steps[0], plain.seconds[0])
        assert record_.num_drafted.sum() == 0


def test_redrawn_acceptances_of_a_lookup_are_the_recorded_ones() -> None:
    sequences = [s for _, s in record(SAMPLINGS[1])]
    compiled = CompiledTraces(make_traces(sequences, max_new_tokens=BUDGET, sampled=True))
    for row, sequence in enumerate(sequences):
        accepted, stop = compiled.redraw(row, np.random.default_rng(0))
        assert accepted.tolist() == sequence.accepted_length.tolist()
        assert stop.tolist() == sequence.eos_stop.tolist()
    cost = CompiledCost(make_cost_table(), ["fp16"])
    batch = ReplayBatch(compiled, cost, len(sequences), acceptance="rejection", rng=np.random.default_rng(1))
    batch.assign(np.arange(len(sequences)), np.arange(len(sequences)))
    while batch.running.any():
        step = batch.step(np.full(len(sequences), 16), batch.running)
        assert (step.num_accepted <= step.num_drafted).all()


def test_a_file_holds_what_it_was_given(tmp_path: Path) -> None:
    traces = make_traces([s for _, s in record(SAMPLINGS[0], 3)], max_new_tokens=BUDGET)
    path = tmp_path / "lookup.parquet"
    traces.save(path)
    for before, after in zip(traces.sequences, TraceSet.load(path).sequences, strict=True):
        np.testing.assert_array_equal(before.draft_tokens, after.draft_tokens)
        np.testing.assert_array_equal(before.rollout_signals, after.rollout_signals)
