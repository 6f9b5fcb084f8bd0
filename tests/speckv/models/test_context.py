# SPDX-License-Identifier: Apache-2.0
"""How long a text may be: the target's context bounds it, the draft's bounds drafts alone."""

import logging
import random
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM

from speckv.decoding import BatchEngine, Engine, SamplingConfig
from speckv.errors import BudgetError
from speckv.integrations.transformers.models import as_is
from speckv.models import CausalModel, RaggedModel
from speckv.models.parts import context_limit, hard_context_limit
from speckv.profiling.prompts import Prompt
from speckv.profiling.record import Recorder
from speckv.traces import NO_TOKEN
from tests.fakes import VOCAB, as_causal, tiny_qwen

NEW = 40


def short(model: CausalModel, limit: int) -> CausalModel:
    return replace(model, context_limit=limit)


@pytest.fixture(scope="module")
def pair() -> tuple[CausalModel, CausalModel]:
    target = tiny_qwen(0)
    return as_causal(target), short(as_causal(tiny_qwen(1, like=target, noise=0.01)), 32)


def prompt(length: int) -> list[int]:
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def plain(target: CausalModel, length: int) -> list[int]:
    ids = torch.tensor([prompt(length)])
    text = target.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)  # type: ignore[operator]
    found: list[int] = text[0, length:].tolist()
    return found


@pytest.mark.parametrize("length", [10, 31, 32, 33, 60])
def test_a_short_draft_cuts_no_text(pair: tuple[CausalModel, CausalModel], length: int) -> None:
    engine, rng = Engine(*pair), random.Random(length)
    engine.start(prompt(length), max_new_tokens=NEW)
    while engine.finish is None:
        room = max(0, 33 - length - len(engine.tokens))
        assert engine.step(rng.randrange(7)).outcome.num_drafted <= room
    assert engine.tokens == plain(pair[0], length)


def test_a_batch_of_prompts_on_both_sides_of_the_drafts_end(pair: tuple[CausalModel, CausalModel]) -> None:
    lengths = [40, 10, 32, 33]
    batch, rng = BatchEngine(*map(RaggedModel, pair)), random.Random(0)
    batch.start([prompt(length) for length in lengths], max_new_tokens=NEW)
    rows = batch.running
    while batch.running:
        batch.step([rng.randrange(7) for _ in batch.running])
    assert [row.tokens for row in rows] == [plain(pair[0], length) for length in lengths]


@pytest.mark.slow
def test_a_recording_holds_no_proposal_past_the_drafts_end(pair: tuple[CausalModel, CausalModel]) -> None:
    lengths = [10, 20, 32, 33]
    recorder = Recorder(*pair, eos_token_ids=frozenset(), sampling=SamplingConfig(), max_new_tokens=NEW)
    named = [Prompt(prompt_id=str(n), task="t", text="x", split="train") for n in lengths]
    for length, sequence in zip(lengths, recorder.record(named, [prompt(n) for n in lengths]), strict=True):
        assert sequence.tokens.tolist() == plain(pair[0], length)
        proposals = max(0, 33 - length)
        assert (sequence.draft_tokens[:proposals] != NO_TOKEN).all()
        assert (sequence.draft_tokens[proposals:] == NO_TOKEN).all()
        engine, rng = Engine(*pair), random.Random(length)
        engine.start(prompt(length), max_new_tokens=NEW)
        while engine.finish is None:
            position, gamma = len(engine.tokens), rng.randrange(9)
            step = engine.step(gamma)
            drafted, signals = sequence.draft_from(position, min(gamma, NEW - position - 1))
            assert step.drafted == tuple(drafted.tolist())
            np.testing.assert_allclose(step.outcome.draft_signals, signals, rtol=2e-3, atol=2e-3)
            tested = min(int(sequence.accepted_length[position]), len(drafted))
            assert step.outcome.num_accepted == tested


def test_a_text_ends_at_the_targets_end_with_a_warning(
    pair: tuple[CausalModel, CausalModel], caplog: pytest.LogCaptureFixture
) -> None:
    target = short(pair[0], 24)
    engine = Engine(target, None)
    with caplog.at_level(logging.WARNING):
        engine.start(prompt(20), max_new_tokens=NEW)
    assert "ends after 5 tokens, not 40" in caplog.text
    while engine.finish is None:
        engine.step(0)
    assert (engine.finish, engine.tokens) == ("length", plain(pair[0], 20)[:5])
    with pytest.raises(BudgetError, match="at most 24 tokens, got 25"):
        engine.start(prompt(25), max_new_tokens=NEW)


def _rope(**parameters: Any) -> Any:
    config = Qwen2Config(max_position_embeddings=4096, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    config.rope_parameters = {"rope_theta": 10_000.0, **parameters}
    return config


@pytest.mark.parametrize(
    ("parameters", "limit", "hard"),
    [
        ({"rope_type": "default"}, 4096, sys.maxsize),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096, sys.maxsize),
        ({"rope_type": "dynamic", "factor": 2.0}, 4096, 4096),
    ],
)
def test_rotary_positions(parameters: dict[str, Any], limit: int, hard: int) -> None:
    with torch.device("meta"):
        model = Qwen2ForCausalLM(_rope(**parameters))
    assert (context_limit(model), hard_context_limit(model)) == (limit, hard)


def test_rotations_that_change_end_a_text_where_they_do() -> None:
    config = Phi3Config(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=32,
        vocab_size=32,
        pad_token_id=0,
        max_position_embeddings=4096,
        original_max_position_embeddings=256,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 256,
        },
    )
    with torch.device("meta"):
        model = Phi3ForCausalLM(config)
    assert (context_limit(model), hard_context_limit(model)) == (256, 256)


def test_learned_positions_end_where_their_table_does() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=32, n_layer=1, n_head=4, vocab_size=24))
    assert context_limit(model) == hard_context_limit(model) == as_is(model).context_limit == 64
