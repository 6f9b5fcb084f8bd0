# SPDX-License-Identifier: Apache-2.0
"""The growing cache holds what transformers' own holds, through appending, cutting, selecting and forking."""

import gc
import random
import weakref
from typing import Any

import pytest
import torch
from transformers import DynamicCache, MistralConfig

from speckv.errors import ModelError
from speckv.models.cache import ROLLBACK_TOKENS, SPARE_TOKENS, GrowingLayer, GrowingWindowLayer, growing_cache
from tests.fakes import tiny_qwen


def both() -> tuple[DynamicCache, DynamicCache]:
    model = tiny_qwen(0)
    return growing_cache(model), DynamicCache(config=model.config)


def states(batch: int, tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(batch, 2, tokens, 8, generator=torch.Generator().manual_seed(seed))


def test_it_equals_the_stock_cache() -> None:
    ours, stock = both()
    assert all(type(layer) is GrowingLayer for layer in ours.layers)
    batch, lengths = 3, (5, 1, 1, SPARE_TOKENS + 3, 2)
    for step, tokens in enumerate(lengths):
        for cache in (ours, stock):
            for layer in range(2):
                cache.update(states(batch, tokens, step), states(batch, tokens, 50 + step), layer)
            if step == 1:
                cache.crop(-2)
            if step == 2:
                cache.batch_select_indices(torch.tensor([2, 0]))
        batch = 2 if step >= 2 else 3
        mine: Any
        theirs: Any
        for mine, theirs in zip(ours.layers, stock.layers, strict=True):
            assert torch.equal(mine.keys, theirs.keys)
            assert torch.equal(mine.values, theirs.values)
            assert mine.get_seq_length() == theirs.get_seq_length()


def test_a_layer_that_is_reset_holds_no_memory() -> None:
    cache, _ = both()
    cache.update(states(1, 4, 0), states(1, 4, 1), 0)
    layer: Any = cache.layers[0]
    room = weakref.ref(layer._key_room.untyped_storage())
    layer.reset()
    gc.collect()
    assert layer.keys is None or layer.keys.numel() == 0
    assert layer._key_room is None
    assert room() is None
    cache.update(states(1, 3, 2), states(1, 3, 3), 0)
    assert torch.equal(layer.keys, states(1, 3, 2))


def test_it_copies_nothing_while_there_is_room() -> None:
    cache, _ = both()
    cache.update(states(1, 4, 0), states(1, 4, 1), 0)
    layer: Any = cache.layers[0]
    start = layer.keys.data_ptr()
    for step in range(10):
        cache.update(states(1, 3, step), states(1, 3, step), 0)
        cache.crop(-2)
        assert layer.keys.data_ptr() == start
    assert cache.get_seq_length() == 14


WINDOW = 16


def test_a_window_layer_gives_what_a_window_of_all_tokens_would() -> None:
    """Passes and rollbacks of random sizes; tokens are dropped on the way."""
    layer, rng, held = GrowingWindowLayer(WINDOW), random.Random(0), torch.zeros(1, 2, 0, 8)
    for number in range(400):
        new = states(1, rng.choice((1, 2, 5, 40)), number)
        sizes = layer.get_mask_sizes(new.shape[2])
        keys, values = layer.update(new, -new)
        held = torch.cat([held, new], dim=2)
        begin = max(held.shape[2] - new.shape[2] - WINDOW + 1, 0)
        assert sizes == (held.shape[2] - begin, begin)
        assert torch.equal(keys, held[:, :, begin:])
        assert torch.equal(values, -keys)
        removed = rng.randrange(min(20, held.shape[2]))
        layer.crop(-removed)
        held = held[:, :, : held.shape[2] - removed]
        assert layer.get_seq_length() == held.shape[2]
    assert layer.num_dropped > 500
    assert layer.keys is not None
    assert layer.keys.shape[2] <= WINDOW + ROLLBACK_TOKENS + SPARE_TOKENS + 40


def test_a_window_layer_refuses_what_it_cannot_give_back() -> None:
    layer = GrowingWindowLayer(WINDOW)
    for number in range(20):
        layer.update(states(1, 40, number), states(1, 40, number))
    with pytest.raises(ModelError, match="cut back by at most"):
        layer.crop(-500)
    layer.crop(-ROLLBACK_TOKENS)
    assert layer.get_seq_length() == 800 - ROLLBACK_TOKENS
    layer.reset()
    assert (layer.get_seq_length(), layer.num_dropped) == (0, 0)


def test_windows_of_transformers_become_window_layers() -> None:
    config = MistralConfig(num_hidden_layers=2, sliding_window=WINDOW, hidden_size=32, num_attention_heads=4)
    model: Any = torch.nn.Module()
    model.config = config
    assert [type(layer) for layer in growing_cache(model).layers] == [GrowingWindowLayer] * 2
