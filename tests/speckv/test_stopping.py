# SPDX-License-Identifier: Apache-2.0
"""Deciding inside a step: the same live and in replay, on what is known then and on nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from speckv.cost import CompiledCost
from speckv.decoding import Engine, RequestContext, SamplingConfig, generate
from speckv.errors import ConfigError
from speckv.observation import DRAFT_FEATURES, SCHEMA, STOPPING_SCHEMA, observe_draft, summarise_draft
from speckv.profiling.prompts import Prompt
from speckv.profiling.record import Recorder
from speckv.replay import CompiledTraces, ReplayBatch, replay_controller
from speckv.runtime.constant import ConstantGamma
from speckv.traces import TraceSequence
from speckv.types import BoolArray, FloatArray
from tests.fakes import VOCAB, as_causal, tiny_qwen
from tests.fakes_traces import compile_both, make_cost_table, make_traces, random_traces

CONFIDENCE = STOPPING_SCHEMA.index("token_confidence")
BUDGET = 24


class Cautious(ConstantGamma):
    """Drafts on while the newest drafted token is likely enough."""

    charges_decision = True

    def __init__(self, gamma: int, least: float) -> None:
        super().__init__(gamma, name="cautious")
        self.least = least

    def go_on(self, observation: FloatArray) -> bool:
        return bool(self.go_on_batch(observation[np.newaxis])[0])

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        assert observations.shape[1] == STOPPING_SCHEMA.size
        return observations[:, CONFIDENCE] >= self.least


def test_the_schema_names_what_summaries_hold() -> None:
    assert STOPPING_SCHEMA.names[: SCHEMA.size] == SCHEMA.names
    signals = np.array([[[0.5, 0.8, 0.6], [2.0, 0.25, 0.125]]])
    summary = dict(zip(DRAFT_FEATURES, summarise_draft(signals)[0, 2].tolist(), strict=True))
    assert summary == pytest.approx(
        {
            "depth": 2 / 16,
            "token_entropy": 2.0,
            "token_confidence": 0.25,
            "token_margin": 0.125,
            "step_entropy_mean": 1.25,
            "step_entropy_max": 2.0,
            "step_confidence_min": 0.25,
            "step_log_confidence": np.log(0.8) + np.log(0.25),
        }
    )


def test_features_stay_within_their_bounds() -> None:
    wild = np.array([[[30.0, 0.0, 0.0]] * 16])
    seen = observe_draft(np.zeros((17, SCHEMA.size), np.float32), summarise_draft(wild)[0])
    assert (seen >= STOPPING_SCHEMA.low).all()
    assert (seen <= STOPPING_SCHEMA.high).all()


def test_compiled_drafts_are_what_the_recording_says() -> None:
    traces = random_traces(num_prompts=5, seed=4)
    compiled = CompiledTraces(traces)
    for sequence, start in zip(traces.sequences, compiled.offset, strict=True):
        for position in range(len(sequence.tokens)):
            _, signals = sequence.draft_from(position, compiled.gamma_max)
            expected = summarise_draft(signals[np.newaxis])[0]
            np.testing.assert_array_equal(compiled.drafts[start + position, : len(expected)], expected)


def test_a_summary_does_not_depend_on_what_comes_later() -> None:
    rng = np.random.default_rng(0)
    signals = rng.random((3, 16, 3))
    whole = summarise_draft(signals)
    for depth in range(16):
        later = signals.copy()
        later[:, depth:] = rng.random((3, 16 - depth, 3))
        np.testing.assert_array_equal(summarise_draft(later)[:, : depth + 1], whole[:, : depth + 1])


def recordings() -> tuple[list[list[int]], list[TraceSequence], Engine]:
    target = tiny_qwen(0)
    models = as_causal(target), as_causal(tiny_qwen(1, like=target, noise=0.03), "draft")
    rng = np.random.default_rng(1)
    prompts = [Prompt(prompt_id=f"p{i}", task="x", text="", split="test") for i in range(8)]
    ids = [rng.integers(0, VOCAB, rng.integers(1, 20)).tolist() for _ in prompts]
    recorder = Recorder(*models, eos_token_ids=frozenset({3}), sampling=SamplingConfig(), max_new_tokens=BUDGET)
    return ids, recorder.record(prompts, ids), Engine(*models, eos_token_ids=frozenset({3}))


def test_a_stopping_controller_does_live_what_it_does_in_replay() -> None:
    prompts, sequences, engine = recordings()
    table = make_cost_table()
    controller = Cautious(7, least=0.5)
    compiled = CompiledTraces(make_traces(sequences, max_new_tokens=BUDGET))
    record = replay_controller(controller, compiled, CompiledCost(table, ["fp16"]), log=True)
    assert record.log is not None
    context = RequestContext(compression="fp16", cost_ratio=table.cost_ratio("fp16"))
    lengths = set()
    for row, (prompt, sequence) in enumerate(zip(prompts, sequences, strict=True)):
        live = generate(engine, prompt, controller, context=context, max_new_tokens=BUDGET, request=sequence.prompt_id)
        assert list(live.tokens) == sequence.tokens.tolist()
        mine = record.log.sequence == row
        outcomes = [step.outcome for step in live.steps]
        for name in ("gamma", "num_drafted", "num_accepted", "num_emitted"):
            assert getattr(record.log, name)[mine].tolist() == [getattr(o, name) for o in outcomes], name
        lengths |= {o.num_drafted for o in outcomes}
        assert live.controller_s <= live.decode_s
    assert {1, 7} < lengths  # it stopped early, and sometimes never


def test_decisions_inside_a_step_are_charged() -> None:
    compiled, cost = compile_both(random_traces(num_prompts=6, seed=1))
    free = replay_controller(Cautious(6, least=0.4), compiled, cost, controller_s=0.0)
    charged = replay_controller(Cautious(6, least=0.4), compiled, cost, controller_s=1.0)
    decisions = charged.seconds.sum() - free.seconds.sum()
    # One a step, and one after each drafted token that another could have followed.
    assert free.num_steps.sum() < decisions <= free.num_steps.sum() + free.num_drafted.sum()


def test_a_controller_that_never_stops_equals_the_constant() -> None:
    compiled, cost = compile_both(random_traces(num_prompts=6, seed=2))
    stopping = replay_controller(Cautious(5, least=0.0), compiled, cost, controller_s=0.0, log=True)
    constant = replay_controller(ConstantGamma(5), compiled, cost, log=True)
    np.testing.assert_array_equal(stopping.seconds, constant.seconds)
    np.testing.assert_array_equal(stopping.gamma_counts, constant.gamma_counts)


def test_no_decision_depends_on_what_is_not_known_yet() -> None:
    """Scrambles everything that a step which stops at depth 1 must not have seen."""
    traces = random_traces(num_prompts=4, seed=3)
    rng = np.random.default_rng(0)
    compiled, cost = compile_both(traces)
    batch = ReplayBatch(compiled, cost, len(compiled))
    batch.assign(np.arange(len(compiled)), np.arange(len(compiled)))
    alone = batch.observe_draft(batch.observe(), np.ones(len(compiled), np.int64))
    changed = []
    for sequence in traces.sequences:
        draft, target = sequence.draft_signals.copy(), sequence.target_signals.copy()
        # The replay begins at position 1: the first drafted token is known, the second and the target's verdict not.
        draft[2:], target[1:] = rng.random(draft[2:].shape), rng.random(target[1:].shape)
        roll_out = rng.random(sequence.rollout_signals.shape).astype(np.float32)
        changed.append(replace(sequence, draft_signals=draft, target_signals=target, rollout_signals=roll_out))
    other, _ = compile_both(make_traces(changed, max_new_tokens=40))
    batch = ReplayBatch(other, cost, len(other))
    batch.assign(np.arange(len(other)), np.arange(len(other)))
    np.testing.assert_array_equal(batch.observe_draft(batch.observe(), np.ones(len(other), np.int64)), alone)


def test_redrawn_acceptances_allow_no_decision_inside_a_step() -> None:
    compiled, cost = compile_both(random_traces(num_prompts=3, sampled=True))
    batch = ReplayBatch(compiled, cost, 1, acceptance="rejection", rng=np.random.default_rng(0))
    batch.assign([0], [batch.playable[0]])
    with pytest.raises(ConfigError, match="decisions inside a step"):
        batch.observe_draft(batch.observe(), np.array([1]))
