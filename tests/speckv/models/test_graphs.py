# SPDX-License-Identifier: Apache-2.0
"""What is captured when, by a capture that only counts; and on a GPU, that replays are the passes they stand for."""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from speckv.decoding import Engine
from speckv.models import CausalModel, RaggedModel, graphs, static
from speckv.models.attention import without_plans
from speckv.models.graphs import Pass, PassGraphs
from speckv.models.signals import Scores
from tests.fakes import as_causal, fixed, on_device, tiny_qwen

GPU = torch.device("cuda:0")


class CountedGraph:
    """In place of a captured pass: runs it, and says what was captured."""

    made: list[tuple[int, Any]] = []  # noqa: RUF012 - emptied for each test

    def __init__(self, run: Pass, ids: Tensor, pool: Any) -> None:
        self._run = run
        self.made.append((len(ids), pool))

    def replay(self, ids: Tensor) -> Scores:
        return self._run(ids)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, Any]]]:
    """Width and pool of each capture."""
    pools = iter(range(1000))
    monkeypatch.setattr(graphs, "_Graph", CountedGraph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    monkeypatch.setattr(CausalModel, "replays_graphs", property(lambda model: model.static and model.captures_graphs))
    CountedGraph.made.clear()
    return iter([CountedGraph.made])


def static_pair() -> tuple[CausalModel, CausalModel]:
    target = tiny_qwen(0)
    return fixed(as_causal(target)), fixed(as_causal(tiny_qwen(1, like=target, noise=0.05)))


def decode(engine: Engine, seed: int, prompt_len: int, max_new_tokens: int) -> None:
    rng = np.random.default_rng(seed)
    engine.start(rng.integers(0, 24, prompt_len).tolist(), max_new_tokens=max_new_tokens)
    while engine.finish is None:
        engine.step(int(rng.choice([0, 0, 1, 5, 16])))


def test_nothing_is_captured_behind_what_was_captured_ahead(
    made: Iterator[list[tuple[int, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static, "LEAST_VISIBLE", 16)
    monkeypatch.setattr(static, "FIRST_CAPACITY", 16)
    captured = next(made)
    pair = static_pair()
    engine, alone = Engine(*pair), Engine(pair[0], None)
    for loop in (engine, alone):
        loop.capture_ahead(100)
    # Sizes 16, 32, 64, 128: a draft of 16 is verified in 17 tokens, which only the wider three hold.
    assert sum(width == 17 for width, _ in captured) == 3 + 3
    ahead = len(captured)
    for seed in range(12):
        decode(engine, seed, prompt_len=3 + 4 * seed, max_new_tokens=50)
        decode_plainly(alone, seed)
    assert len(captured) == ahead


def decode_plainly(engine: Engine, seed: int) -> None:
    engine.start([1, 2, 3 + seed], max_new_tokens=60)
    while engine.finish is None:
        engine.step(0)


def test_requests_take_turns_in_one_room(made: Iterator[list[tuple[int, Any]]]) -> None:
    captured = next(made)
    pair = static_pair()
    engine = Engine(*pair)
    decode(engine, 0, prompt_len=5, max_new_tokens=60)
    rooms = [model.spare_rooms for model in pair]
    assert rooms == [[], []]
    before = len(captured)
    decode(engine, 0, prompt_len=5, max_new_tokens=60)
    assert len(captured) == before > 0
    assert rooms == [[], []]
    engine.release()
    assert [len(spare) for spare in rooms] == [1, 1]


def test_graphs_of_a_room_share_a_pool_until_its_buffers_move(
    made: Iterator[list[tuple[int, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static, "LEAST_VISIBLE", 8)
    monkeypatch.setattr(static, "FIRST_CAPACITY", 8)
    captured = next(made)
    sequence, growing = static_pair()[0].sequence(), as_causal(tiny_qwen(0)).sequence()
    for tokens in ([7], [1, 2], [3], [4] * 10, [5, 6]):
        found, expected = (one.score(tokens) for one in (sequence, growing))
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-9, rtol=0)
    assert [width for width, _ in captured] == [2, 1, 10, 2]  # and not the prompt, which is read once
    pools = [pool for _, pool in captured]
    assert pools[0] == pools[1] != pools[2] == pools[3]


def test_the_end_of_a_long_prompt_is_not_captured(
    made: Iterator[list[tuple[int, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static, "WIDEST_PASS", 8)
    captured = next(made)
    sequence = static_pair()[0].sequence()
    sequence.score([1, 2, 3] * 6, num_logits=1)  # 8, 8 and 2 tokens
    assert captured == []
    sequence.score([1, 2], num_logits=1)
    assert [width for width, _ in captured] == [2]


def test_logits_of_extend_are_the_callers_own(
    made: Iterator[list[tuple[int, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    del made

    class OneBuffer(CountedGraph):
        buffer = torch.zeros(1, 24, dtype=torch.float64)

        def replay(self, ids: Tensor) -> Scores:
            scores = super().replay(ids)
            return Scores(self.buffer.copy_(scores.logits), scores.signals, scores.best)

    monkeypatch.setattr(graphs, "_Graph", OneBuffer)
    sequence = static_pair()[0].sequence()
    sequence.score([1, 2, 3])
    first = sequence.extend([4])
    before = first.clone()
    assert not torch.equal(sequence.extend([5]), before)
    assert torch.equal(first, before)


def test_nothing_is_run_ahead_of_what_cannot_be_captured(made: Iterator[list[tuple[int, Any]]]) -> None:
    captured = next(made)
    target, draft = static_pair()
    target.graph_faults.append("waits for the device")
    Engine(target, draft).capture_ahead(60)
    assert [width for width, _ in captured] == list(range(20, 0, -1))  # the draft's alone


def test_cudnn_plans_nothing_and_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    enabled = [True]
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: enabled[-1])
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", enabled.append)
    with without_plans(torch.device("cpu")):
        assert enabled == [True]
    with without_plans(torch.device("cuda:1")):
        assert enabled == [True, False]
        with without_plans(torch.device("cuda:1")):
            assert enabled == [True, False]
        assert enabled == [True, False]
    assert enabled == [True, False, True]


def test_cudnn_is_put_back_where_a_pass_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    enabled = [True]
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: enabled[-1])
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", enabled.append)
    with pytest.raises(ValueError, match="inside"), without_plans(torch.device("cuda")):
        raise ValueError("inside")
    assert enabled == [True, False, True]


def test_a_pass_that_cannot_be_captured_runs_all_the_same(
    made: Iterator[list[tuple[int, Any]]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    del made

    def refuse(*_: object) -> None:
        raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(graphs, "_Graph", refuse)
    target, draft = static_pair()
    with caplog.at_level(logging.WARNING):
        decode(Engine(target, draft), 0, prompt_len=5, max_new_tokens=40)
        decode(Engine(target, draft), 1, prompt_len=5, max_new_tokens=40)
    assert target.graph_faults == draft.graph_faults == ["called a synchronizing CUDA operation"]
    assert len(caplog.records) == 2  # one for each model, and none for the second request


def test_memory_that_runs_out_is_no_reason_to_stop_capturing(
    made: Iterator[list[tuple[int, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    del made

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(graphs, "_Graph", full)
    target, _ = static_pair()
    sequence = target.sequence()
    sequence.score([1])
    with pytest.raises(torch.OutOfMemoryError):
        sequence.score([1])
    assert target.graph_faults == []
    monkeypatch.setattr(graphs, "_Graph", CountedGraph)
    del sequence
    assert target.spare_rooms == []  # the buffers that it failed in are not taken again
    again = target.sequence()
    again.score([1])
    again.score([2])
    assert [width for width, _ in CountedGraph.made] == [1]


def test_whatever_waits_is_refused_before_the_capture_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second warm-up pass runs under the mode that refuses to wait, and the mode is put back whatever happens."""
    modes: list[Any] = [0]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    current = FakeStream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 7)
    monkeypatch.setattr(graphs, "_side_stream", lambda _: FakeStream())
    seen: list[Any] = []

    def run(ids: Tensor) -> Scores:
        seen.append(modes[-1])
        if modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return Scores.of(torch.zeros(len(ids), 4))

    faults: list[str] = []
    assert len(PassGraphs(faults).run("key", run, torch.zeros(2, dtype=torch.long)).best) == 2
    assert seen == [0, "error", 0]  # warm-up, refused, and the pass itself, kernel by kernel
    assert modes[-1] == 0
    assert len(faults) == 1
    assert current.waited == 1  # for what had begun on the other stream
    assert gc.isenabled()


class FakeStream:
    """Counts how often it waited for another one."""

    waited = 0

    def wait_stream(self, other: object) -> None:
        assert other is not self
        self.waited += 1


@pytest.mark.gpu
def test_captured_ahead_on_a_gpu_means_that_requests_capture_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[int] = []
    original = graphs._Graph

    def counted(run: Pass, ids: Tensor, pool: Any) -> Any:
        captured.append(len(ids))
        return original(run, ids, pool)

    monkeypatch.setattr(graphs, "_Graph", counted)
    pair = [on_device(model, GPU) for model in static_pair()]
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
    curious, plain = (on_device(model, GPU) for model in static_pair())
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
    target, draft = (on_device(model, GPU) for model in static_pair())
    growing = as_causal(tiny_qwen(0)).sequence()
    sequence, other = target.sequence(), draft.sequence()
    for tokens in ([1, 2], [3, 4], [5, 6]):
        assert sequence.score(tokens).best.tolist() == growing.score(tokens).best.tolist()
        other.score(tokens)
    other._room._graphs.clear()  # type: ignore[union-attr]
    torch.cuda.empty_cache()
    filler = [torch.full((1 << 20,), float("nan"), device="cuda") for _ in range(64)]
    for tokens in ([7, 8], [9, 10]):
        assert sequence.score(tokens).best.tolist() == growing.score(tokens).best.tolist()
    assert all(bool(one.isnan().all()) for one in filler)  # nothing was written into memory that is another's now


@pytest.mark.gpu
def test_cudnn_is_left_out_of_every_pass() -> None:
    model = on_device(static_pair()[0], GPU)
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
    model = on_device(static_pair()[0], torch.device("cuda:1"))
    sequence, growing = model.sequence(), as_causal(tiny_qwen(0)).sequence()
    for tokens in ([1, 2], [3, 4], [5, 6]):
        assert sequence.score(tokens).best.tolist() == growing.score(tokens).best.tolist()
