# SPDX-License-Identifier: Apache-2.0
"""Replaying a recording gives, step for step, what the live engine does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from speckv.cost import CompiledCost
from speckv.decoding import Engine, SamplingConfig
from speckv.models import CausalModel
from speckv.profiling.prompts import Prompt
from speckv.profiling.record import Recorder
from speckv.replay import CompiledTraces, replay_policy
from speckv.traces import TraceSequence
from tests.fakes import VOCAB, as_causal, tiny_qwen
from tests.fakes_traces import make_cost_table, make_traces

EOS = frozenset({3})
BUDGET = 24


@pytest.fixture(scope="module")
def models() -> tuple[CausalModel, CausalModel]:
    target = tiny_qwen(0)
    return as_causal(target), as_causal(tiny_qwen(1, like=target, noise=0.02), "draft")


def record(
    models: tuple[CausalModel, CausalModel], sampling: SamplingConfig, count: int = 10
) -> list[tuple[list[int], TraceSequence]]:
    rng = np.random.default_rng(1)
    prompts = [Prompt(prompt_id=f"p{i}", task="x", text="", split="train") for i in range(count)]
    ids = [rng.integers(0, VOCAB, rng.integers(1, 20)).tolist() for _ in prompts]
    recorder = Recorder(*models, eos_token_ids=EOS, sampling=sampling, max_new_tokens=BUDGET)
    return list(zip(ids, recorder.record(prompts, ids), strict=True))


@pytest.mark.parametrize("mode", ["greedy", "gumbel"])
def test_roll_outs_from_a_shared_text_are_taken_over(
    models: tuple[CausalModel, CausalModel], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = SamplingConfig(mode=mode, temperature=0.9, seed=3)
    recorded = record(models, sampling, 4)
    prompts = [Prompt(prompt_id=s.prompt_id, task="x", text="", split="train") for _, s in recorded]
    ids, known = [list(tokens) for tokens, _ in recorded], [s for _, s in recorded]
    other = replace(known[0], tokens=(known[0].tokens + 1) % VOCAB)  # parts from the text at its first token
    again = Recorder(*models, eos_token_ids=EOS, sampling=sampling, max_new_tokens=BUDGET, known=[other, *known])
    monkeypatch.setattr(again, "_roll_out_chunk", lambda *_: pytest.fail("nothing is left to roll out"))
    for before, after in zip(known, again.record(prompts, ids), strict=True):
        np.testing.assert_array_equal(before.rollout_tokens, after.rollout_tokens)
        np.testing.assert_array_equal(before.rollout_signals, after.rollout_signals)


@pytest.mark.parametrize("mode", ["greedy", "gumbel"])
def test_live_steps_equal_the_recording(models: tuple[CausalModel, CausalModel], mode: str) -> None:
    sampling = SamplingConfig(mode=mode, temperature=0.9, top_p=0.98, seed=3)
    rng = np.random.default_rng(2)
    recordings = record(models, sampling)
    assert {s.finish for _, s in recordings} == {"eos", "length"}  # both ends are exercised
    assert any(len(s.rollout_start) for _, s in recordings)
    for prompt, sequence in recordings:
        engine = Engine(*models, eos_token_ids=EOS, sampling=sampling)
        engine.start(prompt, max_new_tokens=BUDGET, request=sequence.prompt_id)
        while engine.finish is None:
            position, gamma = len(engine.tokens), int(rng.integers(0, 17))
            drafted = min(gamma, BUDGET - position - 1, int(sequence.eos_stop[position]))
            accepted = min(drafted, int(sequence.accepted_length[position]))
            emitted = min(accepted + 1, len(sequence.tokens) - position)
            step = engine.step(gamma)
            outcome = step.outcome
            assert (outcome.num_drafted, outcome.num_accepted, outcome.num_emitted) == (drafted, accepted, emitted)
            tokens, found = sequence.draft_from(position, drafted)
            assert tokens.tolist() == list(step.drafted)
            np.testing.assert_allclose(found, outcome.draft_signals, atol=1e-3)
            np.testing.assert_allclose(
                sequence.target_signals[position : position + emitted], step.target_signals, atol=1e-3
            )
        assert engine.tokens == sequence.tokens.tolist()
        assert engine.finish == sequence.finish


def test_acceptance_probability_is_the_ratio_of_the_two_models(models: tuple[CausalModel, CausalModel]) -> None:
    sampling = SamplingConfig(mode="gumbel", temperature=0.7, seed=4)
    prompt, sequence = record(models, sampling, count=2)[1]
    ids = torch.tensor([prompt + sequence.tokens.tolist()[:-1]])
    rows = slice(len(prompt) - 1, None)
    with torch.inference_mode():
        target, draft = (torch.softmax(m.hf(ids).logits[0, rows] / 0.7, -1) for m in models)
    emitted = torch.tensor(sequence.tokens.tolist())[:, None]
    expected = (draft.gather(1, emitted) / target.gather(1, emitted)).clamp(max=1)[:, 0]
    np.testing.assert_allclose(sequence.accept_prob, expected, atol=2e-4)


@pytest.mark.slow
def test_rejection_replay_agrees_with_the_live_engine_in_distribution(models: tuple[CausalModel, CausalModel]) -> None:
    # Tokens accepted per decode step, pooled over 40 live requests and over 40 recordings of other texts of the same
    # distribution; two-sided z-test by request at |z| < 4: a false alarm once in 16,000 seeds.
    gamma, requests = 4, 40
    prompt = [5, 9, 2]
    live = Engine(*models, sampling=SamplingConfig(mode="rejection", seed=5))
    steps_live = []
    for run in range(requests):
        live.start(prompt, max_new_tokens=12, request=str(run))
        count = 0
        while live.finish is None:
            live.step(gamma)
            count += 1
        steps_live.append(count)
    recorder = Recorder(
        *models, eos_token_ids=frozenset(), sampling=SamplingConfig(mode="gumbel", seed=6), max_new_tokens=12
    )
    prompts = [Prompt(prompt_id=f"q{i}", task="x", text="", split="train") for i in range(requests)]
    sequences = recorder.record(prompts, [prompt] * requests)
    traces = make_traces(sequences, max_new_tokens=12, sampled=True)
    cost = CompiledCost(make_cost_table(), traces.compressions)
    replayed = replay_policy(
        CompiledTraces(traces),
        cost,
        lambda rows: np.full(len(rows), gamma),
        acceptance="rejection",
        rng=np.random.default_rng(0),
    )
    a, b = np.array(steps_live, float), replayed.num_steps.astype(float)
    z = (a.mean() - b.mean()) / np.sqrt(a.var() / len(a) + b.var() / len(b))
    assert abs(z) < 4
    assert 1 < a.mean() < 11
