# SPDX-License-Identifier: Apache-2.0
"""Sequences in fixed buffers: the same scores as the growing cache, whatever is cut and written again."""

import gc
import logging
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from speckv.decoding import Engine, SamplingConfig
from speckv.errors import BudgetError
from speckv.models import CausalModel, RaggedModel, static
from speckv.models.cache import has_special_layers
from speckv.models.device import without_plans
from speckv.models.signals import Scores
from speckv.models.static import Pass, PassGraphs, StaticSequence
from tests.fakes import as_causal, fixed, on_device, tiny_qwen

GPU = torch.device("cuda:0")


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
    assert model.spare_buffers == []
    del first
    gc.collect()
    assert len(model.spare_buffers) == 1
    again = model.sequence()
    assert model.spare_buffers == []
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
    for layer in first._buffers._layers:
        assert layer.values is not None
        with torch.inference_mode():
            layer.values.fill_(torch.nan)
    del first
    assert len(model.spare_buffers) == 1
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
    assert model.spare_buffers == []
    model.sequence().extend([1])
    assert len(model.spare_buffers) == 1


def test_a_room_is_free_as_soon_as_nothing_needs_it(pair: tuple[CausalModel, CausalModel]) -> None:
    model = fixed(pair[0])
    model.sequence().extend([1, 2])
    gc.collect()
    gc.disable()
    try:
        room = weakref.ref(model.spare_buffers.pop())
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


def fixed_pair() -> tuple[CausalModel, CausalModel]:
    target = tiny_qwen(0)
    return fixed(as_causal(target)), fixed(as_causal(tiny_qwen(1, like=target, noise=0.05)))


def decode(engine: Engine, seed: int, prompt_len: int, max_new_tokens: int) -> list[int]:
    rng = np.random.default_rng(seed)
    engine.start(rng.integers(0, 24, prompt_len).tolist(), max_new_tokens=max_new_tokens)
    while engine.finish is None:
        engine.step(int(rng.choice([0, 0, 1, 5, 16])))
    return engine.tokens


def test_requests_of_an_engine_reuse_its_buffers_until_they_are_released() -> None:
    pair = fixed_pair()
    engine = Engine(*pair)
    texts = [decode(engine, 0, prompt_len=5, max_new_tokens=60) for _ in range(2)]
    assert texts[0] == texts[1]
    assert [model.spare_buffers for model in pair] == [[], []]
    engine.release()
    assert [len(model.spare_buffers) for model in pair] == [1, 1]


def test_a_model_whose_passes_cannot_be_captured_decodes_the_same_text(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("called a synchronizing CUDA operation")

    expected = [decode(Engine(*fixed_pair()), seed, prompt_len=5, max_new_tokens=40) for seed in range(2)]
    monkeypatch.setattr(static, "_Graph", refuse)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 0)
    monkeypatch.setattr(CausalModel, "replays_graphs", property(lambda model: model.static))
    target, draft = fixed_pair()
    with caplog.at_level(logging.WARNING):
        assert [decode(Engine(target, draft), seed, prompt_len=5, max_new_tokens=40) for seed in range(2)] == expected
    assert target.graph_faults == draft.graph_faults == ["called a synchronizing CUDA operation"]
    assert len(caplog.records) == 2  # one for each model, and none for the second request


def test_memory_that_runs_out_during_a_capture_is_an_error_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(static, "_Graph", full)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 0)
    faults: list[str] = []
    with pytest.raises(torch.OutOfMemoryError):
        PassGraphs(faults).run("key", lambda ids: Scores.of(torch.zeros(len(ids), 4)), torch.zeros(2))
    assert faults == []


@pytest.mark.parametrize("fails", [False, True])
def test_cudnn_is_off_during_a_pass_and_put_back(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    enabled = [True]
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: enabled[-1])
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", enabled.append)
    with without_plans(torch.device("cpu")):
        assert enabled == [True]

    def nested() -> None:
        with without_plans(torch.device("cuda:1")), without_plans(torch.device("cuda:1")):
            assert enabled == [True, False]
            if fails:
                raise ValueError("inside")

    if fails:
        with pytest.raises(ValueError, match="inside"):
            nested()
    else:
        nested()
    assert enabled == [True, False, True]


@pytest.mark.gpu
def test_captured_ahead_on_a_gpu_means_that_requests_capture_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[int] = []
    original = static._Graph

    def counted(run: Pass, ids: Tensor, pool: Any) -> Any:
        captured.append(len(ids))
        return original(run, ids, pool)

    monkeypatch.setattr(static, "_Graph", counted)
    pair = [on_device(model, GPU) for model in fixed_pair()]
    engine = Engine(pair[0], pair[1])
    engine.capture_ahead(100)
    ahead = len(captured)
    assert ahead == 17 + 20
    for seed in range(3):
        decode(engine, seed, prompt_len=5 + seed, max_new_tokens=60)
    assert len(captured) == ahead
    assert pair[0].graph_faults == pair[1].graph_faults == []


@pytest.mark.gpu
def test_a_model_that_looks_at_its_data_goes_on_without_graphs_and_others_with_them() -> None:
    curious, plain = (on_device(model, GPU) for model in fixed_pair())
    original = curious.hf.model.norm.forward

    def looks(states: Tensor) -> Tensor:
        assert bool(states.isfinite().all())  # waits for the device
        found: Tensor = original(states)
        return found

    curious.hf.model.norm.forward = looks
    sequence, growing = curious.sequence(), as_causal(tiny_qwen(0)).sequence()
    for tokens in ([1, 2, 3], [4, 5]):
        assert sequence.score(tokens).best.tolist() == growing.score(tokens).best.tolist()
    assert len(curious.graph_faults) == 1
    torch.cuda.empty_cache()  # raises where a capture was left open
    sequence = plain.sequence()
    sequence.score([1, 2, 3])
    sequence.score([4])
    assert plain.graph_faults == []


@pytest.mark.gpu
def test_a_graph_that_goes_leaves_the_others_as_they_are() -> None:
    target, draft = (on_device(model, GPU) for model in fixed_pair())
    growing = as_causal(tiny_qwen(0)).sequence()
    sequence, other = target.sequence(), draft.sequence()
    for tokens in ([1, 2], [3, 4], [5, 6]):
        assert sequence.score(tokens).best.tolist() == growing.score(tokens).best.tolist()
        other.score(tokens)
    other._buffers._graphs.clear()  # type: ignore[union-attr]
    torch.cuda.empty_cache()
    filler = [torch.full((1 << 20,), float("nan"), device="cuda") for _ in range(64)]
    for tokens in ([7, 8], [9, 10]):
        assert sequence.score(tokens).best.tolist() == growing.score(tokens).best.tolist()
    assert all(bool(one.isnan().all()) for one in filler)  # nothing was written into memory that is another's now


@pytest.mark.gpu
def test_cudnn_is_left_out_of_every_pass() -> None:
    model = on_device(fixed_pair()[0], GPU)
    seen: list[bool] = []
    enabled: Callable[[], bool] = torch.backends.cuda.cudnn_sdp_enabled
    model.hf.model.register_forward_pre_hook(lambda *_: seen.append(enabled()))
    before = enabled()
    for static_cache in (True, False):
        replace(model, static=static_cache).sequence().score([1, 2, 3])
    rows = RaggedModel(model).rows()
    rows.add(1)
    rows.extend([0], torch.tensor([[1, 2]], device=model.device), [2])
    assert seen == [False, False, False]
    assert enabled() == before


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_second_gpu_replays_its_own_passes() -> None:
    model = on_device(fixed_pair()[0], torch.device("cuda:1"))
    sequence, growing = model.sequence(), as_causal(tiny_qwen(0)).sequence()
    for tokens in ([1, 2], [3, 4], [5, 6]):
        assert sequence.score(tokens).best.tolist() == growing.score(tokens).best.tolist()
