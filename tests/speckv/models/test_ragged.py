# SPDX-License-Identifier: Apache-2.0
"""Rows of unequal length in one cache are sequences of their own."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from speckv.errors import BudgetError, ModelError
from speckv.models import CausalModel, ragged
from speckv.models.ragged import RaggedModel, RaggedRows
from tests.fakes import VOCAB, as_causal, tiny_qwen


def tiny_llama(seed: int) -> CausalModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.25,
        pad_token_id=0,
    )
    hf: Any = LlamaForCausalLM(config).eval().double()
    return as_causal(hf)


MODELS = {"qwen": lambda: as_causal(tiny_qwen(0)), "llama": lambda: tiny_llama(0)}


class Mirror:
    """The same rows as token lists, each read from its beginning whenever logits are wanted."""

    def __init__(self, model: CausalModel) -> None:
        self.model = model
        self.rows: list[list[int]] = []

    def extend(self, rows: list[int], pieces: list[list[int]], *, last_only: bool) -> Tensor:
        found = []
        for row, piece in zip(rows, pieces, strict=True):
            self.rows[row] += piece
            found.append(self.model.sequence().extend(self.rows[row], num_logits=1 if last_only else len(piece)))
        return torch.cat(found)


def some_tokens(rng: random.Random, most: int) -> list[int]:
    return [rng.randrange(VOCAB) for _ in range(rng.randint(1, most))]


@pytest.mark.parametrize("at_once", [4, 10_000])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_rows_are_sequences(name: str, at_once: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged, "SPARE_TOKENS", 1)  # so that buffers grow all the time
    monkeypatch.setattr(ragged, "TOKENS_AT_ONCE", at_once)
    model, rng = MODELS[name](), random.Random(seed)
    cache, mirror = RaggedModel(model).rows(), Mirror(model)
    for _ in range(30):
        action = rng.choice(["add", "extend", "extend", "truncate", "remove"]) if mirror.rows else "add"
        row = rng.randrange(len(mirror.rows)) if mirror.rows else 0
        if action == "add":
            count = rng.randint(1, 2)
            cache.add(count)
            mirror.rows += [[] for _ in range(count)]
        elif action == "remove":
            cache.remove(row)
            mirror.rows[row] = mirror.rows[-1]
            mirror.rows.pop()
        elif action == "truncate":
            length = rng.randint(0, len(mirror.rows[row]))
            cache.truncate(row, length)
            del mirror.rows[row][length:]
        else:
            rows = sorted(rng.sample(range(len(mirror.rows)), rng.randint(1, len(mirror.rows))))
            check_extend(cache, mirror, rows, [some_tokens(rng, 6) for _ in rows], last_only=rng.random() < 0.5)
        assert list(cache.lengths) == list(map(len, mirror.rows))


def check_extend(
    cache: RaggedRows, mirror: Mirror, rows: list[int], pieces: list[list[int]], *, last_only: bool
) -> None:
    width = max(map(len, pieces))
    # Padding that is not a token's own: it must change nothing.
    tokens = torch.tensor([[*piece, *[VOCAB - 1] * (width - len(piece))] for piece in pieces])
    logits = cache.extend(rows, tokens, list(map(len, pieces)), last_only=last_only)
    torch.testing.assert_close(logits, mirror.extend(rows, pieces, last_only=last_only))


def test_a_context_that_would_overflow_is_refused_and_padding_does_not_count() -> None:
    cache = RaggedModel(as_causal(tiny_qwen(0))).rows()
    cache.add(2)
    cache.extend([0, 1], torch.zeros(2, 126, dtype=torch.long), [126, 3], last_only=True)
    cache.extend([0, 1], torch.zeros(2, 9, dtype=torch.long), [2, 9], last_only=True)
    assert list(cache.lengths) == [128, 12]
    with pytest.raises(BudgetError, match="at most 128 tokens of context, got 129"):
        cache.extend([0], torch.zeros(1, 1, dtype=torch.long), [1])


def test_what_is_hidden_may_be_anything() -> None:
    model = as_causal(tiny_qwen(0))
    cache = RaggedModel(model).rows()
    cache.add(1)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    cache.extend([0], tokens, [6])
    cache.truncate(0, 2)
    alone = model.sequence().extend([1, 2, 9])[-1:]
    torch.testing.assert_close(cache.extend([0], torch.tensor([[9]]), [1]), alone)


def test_windows_of_several_sizes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged, "window_sizes", lambda _: [16, 8])
    with pytest.raises(ModelError, match=r"windows of several sizes.*one request at a time"):
        RaggedModel(as_causal(tiny_qwen(0))).rows()


@pytest.mark.parametrize("at_once", [1, 9, 20, 1000])
def test_reading_in_parts_changes_nothing(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = as_causal(tiny_qwen(0))
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(VOCAB, (n,), generator=generator).tolist() for n in (3, 9, 1, 5, 7)]
    steps = [torch.randint(VOCAB, (5,), generator=generator) for _ in range(3)]
    monkeypatch.setattr(ragged, "TOKENS_AT_ONCE", at_once)
    batch = RaggedRows(model)
    states = batch.read(rows)
    assert states.shape == (5, 9, 32)
    ahead = torch.stack([batch.advance(tokens) for tokens in steps])
    for i, row in enumerate(rows):
        text = torch.tensor([[*row, *(int(tokens[i]) for tokens in steps)]])
        alone = model.hf.base_model(text).last_hidden_state[0]
        torch.testing.assert_close(states[i, : len(row)], alone[: len(row)])
        torch.testing.assert_close(ahead[:, i], alone[len(row) :])
    assert list(batch.copy_of([4, 1]).lengths) == [10, 12]


def test_copied_rows_go_on_from_prefixes_and_leave_the_others_as_they_were() -> None:
    model = as_causal(tiny_qwen(0))
    rows = [[3, 1, 4, 1, 5], [9, 2, 6]]
    batch = RaggedRows(model)
    batch.read(rows)
    copied = batch.copy_of([1, 0, 0], [2, 4, 1])
    ahead = copied.advance(torch.tensor([7, 8, 9]))
    for states, text in zip(ahead, ([9, 2, 7], [3, 1, 4, 1, 8], [3, 9]), strict=True):
        torch.testing.assert_close(states, model.hf.base_model(torch.tensor([text])).last_hidden_state[0, -1])
    assert list(batch.lengths) == [5, 3]
    torch.testing.assert_close(
        batch.advance(torch.tensor([2, 2]))[1],
        model.hf.base_model(torch.tensor([[9, 2, 6, 2]])).last_hidden_state[0, -1],
    )
