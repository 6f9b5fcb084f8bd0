# SPDX-License-Identifier: Apache-2.0
"""Sequences in fixed buffers: the same scores as the growing cache, whatever is cut and written again."""

import gc
import weakref

import numpy as np
import pytest
import torch

from speckv.decoding import Engine, SamplingConfig
from speckv.errors import BudgetError
from speckv.models import CausalModel
from speckv.models.cache import has_special_layers
from speckv.models.static import StaticSequence
from tests.fakes import as_causal, fixed, tiny_qwen


@pytest.fixture(scope="module")
def pair() -> tuple[CausalModel, CausalModel]:
    target = tiny_qwen(0)
    return as_causal(target), as_causal(tiny_qwen(1, like=target, noise=0.05))


def test_scores_equal_those_of_the_growing_cache(pair: tuple[CausalModel, CausalModel]) -> None:
    growing, static = pair[0].sequence(), fixed(pair[0]).sequence()
    rng = np.random.default_rng(0)
    for _ in range(40):
        width = int(rng.integers(1, 9))
        if growing.length + width > 120:
            keep = int(rng.integers(0, 60))
            growing.truncate(keep)
            static.truncate(keep)
        tokens = rng.integers(0, 24, width).tolist()
        rows = int(rng.integers(1, width + 1))
        expected, found = (s.score(tokens, num_logits=rows) for s in (growing, static))
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-9, rtol=0)
        torch.testing.assert_close(found.signals, expected.signals)
        assert found.best.tolist() == expected.best.tolist()
        assert static.length == growing.length
        if rng.random() < 0.5:
            keep = int(rng.integers(0, growing.length + 1))
            growing.truncate(keep)
            static.truncate(keep)


@pytest.mark.parametrize("mode", ["greedy", "gumbel"])
def test_the_engine_writes_the_same_text(pair: tuple[CausalModel, CausalModel], mode: str) -> None:
    sampling = SamplingConfig(mode=mode, seed=3)
    texts = []
    for target, draft in (pair, (fixed(pair[0]), fixed(pair[1]))):
        engine = Engine(target, draft, sampling=sampling)
        rng = np.random.default_rng(1)
        engine.start([1, 2, 3], max_new_tokens=60)
        outcomes = []
        while engine.finish is None:
            outcomes.append(engine.step(int(rng.integers(0, 6))).outcome.num_accepted)
        texts.append((engine.tokens, outcomes))
    assert texts[0] == texts[1]


def test_buffers_outlive_their_sequence_and_say_nothing_of_it(pair: tuple[CausalModel, CausalModel]) -> None:
    model = fixed(pair[0])
    first = model.sequence()
    first.extend(list(range(20)))
    assert model.spare_rooms == []
    del first
    gc.collect()
    assert len(model.spare_rooms) == 1
    again = model.sequence()
    assert model.spare_rooms == []
    other = model.sequence()  # while one is alive, another one has buffers of its own
    torch.testing.assert_close(again.extend([4, 5]), pair[0].sequence().extend([4, 5]), atol=1e-9, rtol=0)
    other.extend([7])
    torch.testing.assert_close(again.extend([6]), pair[0].sequence().extend([4, 5, 6])[2:], atol=1e-9, rtol=0)


def test_not_even_a_nan_outlives_its_sequence(pair: tuple[CausalModel, CausalModel]) -> None:
    """A masked slot's value is multiplied by zero, which leaves a NaN what it is."""
    model = fixed(pair[0])
    first = model.sequence()
    first.extend(list(range(20)))
    assert isinstance(first, StaticSequence)
    for layer in first._room._layers:
        assert layer.values is not None
        with torch.inference_mode():
            layer.values.fill_(torch.nan)
    del first
    assert len(model.spare_rooms) == 1
    torch.testing.assert_close(model.sequence().extend([4, 5]), pair[0].sequence().extend([4, 5]), atol=1e-9, rtol=0)


def test_buffers_that_a_pass_failed_in_are_not_taken_again(
    pair: tuple[CausalModel, CausalModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fixed(pair[0])
    sequence = model.sequence()
    sequence.extend([1, 2])

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(model.hf, "forward", full)
        with pytest.raises(torch.OutOfMemoryError):
            sequence.extend([3])
    del sequence
    assert model.spare_rooms == []
    model.sequence().extend([1])
    assert len(model.spare_rooms) == 1


def test_a_room_is_free_as_soon_as_nothing_needs_it(pair: tuple[CausalModel, CausalModel]) -> None:
    model = fixed(pair[0])
    model.sequence().extend([1, 2])
    gc.collect()
    gc.disable()
    try:
        room = weakref.ref(model.spare_rooms.pop())
        assert room() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("wanted", [1, 6, 30])
def test_long_prompts_are_read_in_pieces(
    pair: tuple[CausalModel, CausalModel], monkeypatch: pytest.MonkeyPatch, wanted: int
) -> None:
    monkeypatch.setattr("speckv.models.static.WIDEST_PASS", 8)
    tokens = [*range(24), 3, 1, 2, 5, 4, 7]
    growing, static = pair[0].sequence(), fixed(pair[0]).sequence()
    found, expected = (one.score(tokens, num_logits=wanted) for one in (static, growing))
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-9, rtol=0)
    assert static.length == len(tokens)
    torch.testing.assert_close(static.extend([1]), growing.extend([1]), atol=1e-9, rtol=0)


def test_the_context_is_a_limit(pair: tuple[CausalModel, CausalModel]) -> None:
    sequence = fixed(pair[0]).sequence()
    sequence.extend(list(range(24)) * 5)
    with pytest.raises(BudgetError, match="at most 128 tokens"):
        sequence.extend([1] * 9)
    assert sequence.length == 120


def test_buffers_grow(pair: tuple[CausalModel, CausalModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speckv.models.static.FIRST_CAPACITY", 8)
    monkeypatch.setattr("speckv.models.static.LEAST_VISIBLE", 4)
    growing, static = pair[0].sequence(), fixed(pair[0]).sequence()
    for tokens in ([1, 2, 3], [4] * 10, [5], [6] * 40):
        torch.testing.assert_close(static.extend(tokens), growing.extend(tokens), atol=1e-9, rtol=0)


def test_sliding_windows_need_another_cache() -> None:
    model = tiny_qwen(0)
    assert not has_special_layers(model)
    model.config.sliding_window = 8
    model.config.layer_types = ["full_attention", "sliding_attention"]
    assert has_special_layers(model)
