# SPDX-License-Identifier: Apache-2.0
"""What the loop moves between device and host, and how often it waits: once a step, or once a decision."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from speckv.decoding import DecodeStep, Engine, SamplingConfig, loop
from speckv.decoding.clock import CudaClock, device_clock
from speckv.decoding.request import to_host
from speckv.types import FloatArray
from tests.fakes import TableModel, as_causal, tiny_qwen

SAMPLINGS = [SamplingConfig(mode=mode, seed=5) for mode in ("greedy", "gumbel", "rejection")]


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that hand a tensor's value to the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each transfer from the device."""
    seen: list[int] = []

    def counted(signals: list[torch.Tensor], tokens: list[torch.Tensor]) -> FloatArray:
        found = to_host(signals, tokens)
        seen.append(len(found))
        return found

    monkeypatch.setattr(loop, "to_host", counted)
    return seen


def table_engine(sampling: SamplingConfig) -> Engine:
    target = TableModel.random(4, vocab=6)
    return Engine(target, target.perturbed(1, 0.8), eos_token_ids=frozenset([5]), sampling=sampling)


def run(engine: Engine, *, waits: bool, go_on: Callable[[FloatArray], bool] | None = None) -> list[DecodeStep]:
    """Decodes with a loop that sees each token at once, as on a CPU, or only when a step ends, as on a GPU."""
    engine._fetch_each = waits
    steps = [engine.start([1, 2], max_new_tokens=40, request="r")]
    rng = np.random.default_rng(0)
    while engine.finish is None:
        steps.append(engine.step(int(rng.integers(0, 6)), go_on))
    return steps


@pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=lambda s: s.mode)
def test_a_loop_that_does_not_wait_takes_the_same_steps(sampling: SamplingConfig) -> None:
    for seed in range(6):
        chosen = replace(sampling, seed=seed)
        for early, late in zip(*(run(table_engine(chosen), waits=waits) for waits in (True, False)), strict=True):
            assert (early.tokens, early.drafted) == (late.tokens, late.drafted)
            np.testing.assert_array_equal(early.outcome.draft_signals, late.outcome.draft_signals)
            assert early.outcome.num_accepted == late.outcome.num_accepted
            assert early.outcome.num_tested == late.outcome.num_tested


@pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=lambda s: s.mode)
def test_a_step_waits_once_and_a_decision_once_more(sampling: SamplingConfig, transfers: list[int]) -> None:
    target = tiny_qwen(0)
    engine = Engine(as_causal(target), as_causal(tiny_qwen(1, like=target, noise=0.05)), sampling=sampling)
    asked: list[int] = []

    def go_on(signals: FloatArray) -> bool:
        asked.append(len(signals))
        return True

    with Reads() as reads:
        steps = run(engine, waits=False)
        assert len(transfers) == len(steps)
        transfers.clear()
        steps = run(engine, waits=False, go_on=go_on)
        assert len(transfers) == len(steps) + len(asked) > len(steps)
    assert reads.count == 0


def test_a_host_clock_is_for_a_cpu() -> None:
    first, second = (device_clock(torch.device("cpu"))() for _ in range(2))
    assert 0 <= second - first < 60


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda s: s.mode)
@pytest.mark.parametrize("static", [False, True], ids=["growing", "captured"])
def test_cuda_writes_what_the_cpu_writes_and_waits_once_a_step(sampling: SamplingConfig, static: bool) -> None:
    target = tiny_qwen(0)
    draft = tiny_qwen(1, like=target, noise=0.05)
    texts = []
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        for model in (target, draft):
            model.to(device)  # type: ignore[arg-type]
        pair = [replace(as_causal(m), device=device, static=static, spare_buffers=[]) for m in (target, draft)]
        engine = Engine(*pair, sampling=sampling)
        engine.start([1, 2, 3], max_new_tokens=100, request="r")
        while engine.finish is None:
            warm = len(engine.tokens) > 50
            if name == "cuda" and warm and sampling.mode != "rejection":
                engine.begin_step(3)
                try:
                    torch.cuda.set_sync_debug_mode("error")  # raises where drafting waits for the device
                    while engine.can_draft:
                        engine.draft_token()
                finally:
                    torch.cuda.set_sync_debug_mode("default")
                engine.verify_draft()
            else:
                engine.step(3)
        texts.append(engine.tokens)
    if sampling.mode != "rejection":  # whose draws come from the device's own generator
        assert texts[0] == texts[1]
    assert len(texts[1]) == 100


@pytest.mark.gpu
def test_events_measure_the_device() -> None:
    device = torch.device("cuda")
    clock = device_clock(device)
    assert isinstance(clock, CudaClock)
    started = clock()
    torch.cuda._sleep(100_000_000)  # type: ignore[no-untyped-call]
    assert 0.01 < clock() - started < 10
