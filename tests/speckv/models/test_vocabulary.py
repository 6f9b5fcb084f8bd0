# SPDX-License-Identifier: Apache-2.0
"""Drafts whose scoring layer has another number of rows than the target's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from speckv.decoding import BatchEngine, Engine, SamplingConfig
from speckv.errors import ConfigError
from speckv.integrations.transformers.models import as_is
from speckv.models import PairConfig, RaggedModel, load_pair
from speckv.models.causal import with_vocabulary
from speckv.profiling.prompts import Prompt
from speckv.profiling.record import Recorder
from tests.fakes import fixed, save_tiny, tiny_qwen

SIZES = [(32, 24), (24, 32)]
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def model(vocab_size: int, seed: int) -> Any:
    return tiny_qwen(seed, vocab_size=vocab_size)


def plain(target: Any) -> list[int]:
    found: list[int] = target.generate(torch.tensor([PROMPT]), max_new_tokens=40, do_sample=False, pad_token_id=0)[0]
    return torch.as_tensor(found)[len(PROMPT) :].tolist()


@pytest.mark.parametrize(("target_size", "draft_size"), SIZES)
def test_scores_are_the_drafts_own_where_both_have_rows(target_size: int, draft_size: int) -> None:
    draft = as_is(model(draft_size, 1))
    fitted = with_vocabulary(draft, target_size)
    shared = min(target_size, draft_size)
    ids = [token for token in PROMPT if token < draft_size]
    ours, own = fitted.sequence().extend(ids), draft.sequence().extend(ids)
    assert ours.shape[1] == fitted.vocab_size == target_size
    assert torch.equal(ours[:, :shared], own[:, :shared])
    assert bool(torch.isinf(ours[:, shared:]).all())
    assert draft.sequence().extend(ids).shape[1] == draft_size, "the draft itself was changed"
    assert with_vocabulary(draft, draft_size) is draft


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("mode", ["greedy", "gumbel", "rejection"])
@pytest.mark.parametrize(("target_size", "draft_size"), SIZES)
def test_texts_are_the_targets_and_padding_is_never_proposed(
    target_size: int, draft_size: int, mode: str, static: bool
) -> None:
    target, draft = as_is(model(target_size, 0)), with_vocabulary(as_is(model(draft_size, 1)), target_size)
    engine = Engine(target, fixed(draft) if static else draft, sampling=SamplingConfig(mode=mode))
    engine.start(PROMPT, max_new_tokens=40)
    while engine.finish is None:
        assert max(engine.step(4).drafted, default=0) < draft_size
    if mode == "greedy":
        assert engine.tokens == plain(target.hf)
    elif mode == "gumbel":
        alone = Engine(target, None, sampling=SamplingConfig(mode=mode))
        alone.start(PROMPT, max_new_tokens=40)
        while alone.finish is None:
            alone.step(0)
        assert engine.tokens == alone.tokens


@pytest.mark.parametrize(("target_size", "draft_size"), SIZES)
def test_batches_and_recordings_too(target_size: int, draft_size: int) -> None:
    target, draft = as_is(model(target_size, 0)), with_vocabulary(as_is(model(draft_size, 1)), target_size)
    batch = BatchEngine(RaggedModel(target), RaggedModel(draft))
    batch.start([PROMPT, PROMPT[:3]], max_new_tokens=40)
    rows = batch.running
    while batch.running:
        batch.step([3] * len(batch.running))
    assert rows[0].tokens == plain(target.hf)
    recorder = Recorder(target, draft, eos_token_ids=frozenset(), sampling=SamplingConfig(), max_new_tokens=40)
    (sequence,) = recorder.record([Prompt(prompt_id="p", task="t", text="x", split="train")], [PROMPT])
    assert sequence.tokens.tolist() == plain(target.hf)
    assert sequence.draft_tokens.max() < draft_size
    assert sequence.rollout_tokens.max() < draft_size


def test_a_pair_of_one_tokenizer_loads(tmp_path: Path) -> None:
    for name, size in (("t", 32), ("d", 24)):
        save_tiny(tmp_path / name, model(size, 0))
    pair = load_pair(PairConfig(target=str(tmp_path / "t"), draft=str(tmp_path / "d"), dtype="float32", device="cpu"))
    assert pair.target.vocab_size == pair.draft.vocab_size == 32


def test_the_engine_refuses_a_draft_that_was_not_fitted() -> None:
    target, draft = as_is(model(32, 0)), as_is(model(24, 1))
    with pytest.raises(ConfigError, match=r"the target's 32 tokens, got one that scores 24.*with_vocabulary"):
        Engine(target, draft)
    Engine(target, replace(with_vocabulary(draft, 32)))
