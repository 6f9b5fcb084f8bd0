# SPDX-License-Identifier: Apache-2.0
"""A row of a batch is the request alone: text, counts, signals, whatever the others do."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speckv.decoding import BatchEngine, DecodeStep, Engine, SamplingConfig
from speckv.decoding.clock import device_clock
from speckv.errors import BudgetError, ConfigError, ProbabilityError
from speckv.models import CausalModel, RaggedModel
from speckv.types import BoolArray, FloatArray, IntArray
from tests.fakes import BatchTableModel, TableModel, TableRows, as_causal, on_device, tiny_qwen

MODES = ("greedy", "gumbel", "rejection")


@dataclass
class Request:
    """What is asked of a row, and what its steps were."""

    prompt: list[int]
    budget: int
    gammas: list[int]
    joins: int = 0
    steps: list[DecodeStep] = field(default_factory=list)

    def gamma(self, step: int) -> int:
        return self.gammas[step % len(self.gammas)]


requests = st.lists(
    st.builds(
        Request,
        prompt=st.lists(st.integers(0, 5), min_size=1, max_size=9),
        budget=st.integers(1, 25),
        gammas=st.lists(st.integers(0, 9), min_size=1, max_size=8),
        joins=st.integers(0, 4),
    ),
    min_size=1,
    max_size=6,
)


def goes_on(request: Request, signals: FloatArray) -> bool:
    """Some rule that depends on the request and on its draft."""
    return bool(signals[-1, 1] > 0.2 + 0.1 * len(request.prompt))


def run_batch(engine: BatchEngine, asked: Sequence[Request], *, stopping: bool = False) -> None:
    """Decodes requests together; each joins before the step that it names, its steps are put down with it."""
    for request in asked:
        request.steps = []
    engine.start([asked[0].prompt], max_new_tokens=asked[0].budget, requests=["drop me"])
    engine._begin()
    by_name = {str(i): request for i, request in enumerate(asked)}
    moment = 0
    while engine.running or any(r.joins >= moment for r in asked):
        joining = [name for name, r in by_name.items() if r.joins == moment]
        if joining:
            new = [by_name[name] for name in joining]
            prefills = engine.admit([r.prompt for r in new], max_new_tokens=[r.budget for r in new], requests=joining)
            for request, prefill in zip(new, prefills, strict=True):
                request.steps.append(prefill)
        rows = [by_name[row.request] for row in engine.running]
        if rows:

            def go_on(which: IntArray, signals: FloatArray, rows: Sequence[Request] = rows) -> BoolArray:
                return np.array([goes_on(rows[i], one) for i, one in zip(which, signals, strict=True)])

            steps = engine.step([r.gamma(len(r.steps) - 1) for r in rows], go_on if stopping else None)
            for request, step in zip(rows, steps, strict=True):
                request.steps.append(step)
        moment += 1


def assert_as_alone(engine: Engine, asked: Sequence[Request], *, stopping: bool = False, exact: bool = True) -> None:
    """Each request's steps are those that it takes alone."""
    for i, request in enumerate(asked):
        expected = [engine.start(request.prompt, max_new_tokens=request.budget, request=str(i))]
        while engine.finish is None:
            gamma = request.gamma(len(expected) - 1)
            expected.append(engine.step(gamma, partial(goes_on, request) if stopping else None))
        assert len(request.steps) == len(expected)
        for mine, alone in zip(request.steps, expected, strict=True):
            assert (mine.tokens, mine.drafted) == (alone.tokens, alone.drafted)
            for name in ("gamma", "num_drafted", "num_accepted", "num_tested", "num_emitted", "finish"):
                assert getattr(mine.outcome, name) == getattr(alone.outcome, name), name
            tolerance = 0.0 if exact else 1e-5
            np.testing.assert_allclose(mine.outcome.draft_signals, alone.outcome.draft_signals, atol=tolerance)
            np.testing.assert_allclose(mine.target_signals, alone.target_signals, atol=tolerance)
            np.testing.assert_allclose(mine.outcome.target_entropy, alone.outcome.target_entropy, atol=tolerance)


@pytest.mark.slow
@settings(max_examples=80)
@given(requests, st.integers(0, 1000), st.sampled_from(MODES), st.floats(0.0, 3.0), st.booleans())
def test_a_row_is_the_request_alone(asked: list[Request], seed: int, mode: str, noise: float, stopping: bool) -> None:
    target = TableModel.random(seed)
    draft = target.perturbed(seed + 1, noise)
    sampling = SamplingConfig(mode=mode, temperature=0.8, top_k=5, top_p=0.95, seed=seed)
    options: dict[str, Any] = {"eos_token_ids": frozenset({6}), "sampling": sampling}
    batch = BatchEngine(BatchTableModel(target), BatchTableModel(draft), **options)
    run_batch(batch, asked, stopping=stopping)
    assert_as_alone(Engine(target, draft, **options), asked, stopping=stopping)


@pytest.mark.slow
@settings(max_examples=6)
@given(requests, st.sampled_from(MODES), st.integers(0, 50))
def test_a_row_of_real_models_is_the_request_alone(asked: list[Request], mode: str, seed: int) -> None:
    target, draft = tiny_pair()
    options: dict[str, Any] = {
        "eos_token_ids": frozenset({6}),
        "sampling": SamplingConfig(mode=mode, temperature=0.9, seed=seed),
    }
    run_batch(batch := BatchEngine(RaggedModel(target), RaggedModel(draft), **options), asked)
    assert batch.running == ()
    assert_as_alone(Engine(target, draft, **options), asked, exact=False)


def tiny_pair() -> tuple[CausalModel, CausalModel]:
    hf = tiny_qwen(0)
    return as_causal(hf), as_causal(tiny_qwen(1, like=hf, noise=0.03))


def counting(models: int = 1) -> BatchTableModel:
    """Says 0 1 2 0 1 2 ... for sure; `models` of 2 says 2 after 2 instead."""
    table = torch.full((3, 3, 3), -5.0)
    for last in range(3):
        table[:, last, (last + 1) % 3] = 5.0
    if models == 2:
        table[:, 2] = torch.tensor([-5.0, -5.0, 5.0])
    return BatchTableModel(TableModel(table))


def test_passes_hold_only_the_rows_that_have_something_to_do() -> None:
    target, draft = counting(), counting()
    engine = BatchEngine(target, draft)
    engine.start([[0], [1], [2], [0, 1]], max_new_tokens=[20, 20, 20, 4])
    target.passes.clear()
    draft.passes.clear()
    steps = engine.step([3, 0, 1, 9])  # the last row may draft 2: of 4 tokens one is out and one is the target's
    assert draft.passes == [[0, 2, 3], [0, 3], [0]]
    assert target.passes == [[0, 1, 2, 3]]
    assert [step.tokens for step in steps] == [(2, 0, 1, 2), (0,), (1, 2), (0, 1, 2)]
    assert [step.outcome.finish for step in steps] == [None, None, None, "length"]
    # The draft misses its own last token, or, without drafting, the one that was newest.
    assert [engine.draft_lag(row) for row in engine.running] == [1, 1, 1]
    engine.step([0, 0, 0])
    assert [engine.draft_lag(row) for row in engine.running] == [2, 2, 2]
    assert len(draft.passes) == 3
    engine.step([1, 0, 2])
    assert [engine.draft_lag(row) for row in engine.running] == [1, 3, 1]


def test_rows_that_finish_leave_and_others_take_their_place() -> None:
    engine = BatchEngine(counting(), counting())
    engine.start([[0], [0], [0]], max_new_tokens=[2, 9, 3], requests=["a", "b", "c"])
    assert [row.request for row in engine.running] == ["a", "b", "c"]
    engine.step([0, 0, 0])
    assert [row.request for row in engine.running] == ["b", "c"]
    assert [step.tokens for step in engine.admit([[1], [2]], max_new_tokens=[5, 1], requests=["d", "e"])] == [
        (2,),
        (0,),
    ]
    # A budget of one ends with the prefill; the order is that of admission wherever the caches keep the rows.
    assert [(row.request, row.tokens) for row in engine.running] == [("b", [1, 2]), ("c", [1, 2]), ("d", [2])]
    assert [step.tokens for step in engine.step([2, 0, 3])] == [(0, 1, 2), (0,), (0, 1, 2, 0)]
    assert [row.request for row in engine.running] == ["b"]


def test_a_step_asks_about_running_rows_wherever_the_caches_keep_them() -> None:
    engine = BatchEngine(counting(), counting())
    engine.start([[0], [0], [0]], max_new_tokens=[2, 20, 20], requests=["a", "b", "c"])
    engine.step([0, 0, 0])  # "a" leaves, and "c" takes its place in the caches
    steps = engine.step([4, 5], lambda which, _: which == 1)
    assert [row.request for row in engine.running] == ["b", "c"]
    assert [len(step.drafted) for step in steps] == [1, 5]
    assert [step.outcome.gamma for step in steps] == [1, 5]


def test_every_row_is_charged_the_whole_step() -> None:
    now = iter(range(100))
    engine = BatchEngine(counting(), counting(), clock=lambda: float(next(now)))
    prefills = engine.start([[0], [1]], max_new_tokens=9)
    assert [step.outcome.seconds for step in prefills] == [1.0, 1.0]
    drafted, plain = engine.step([2, 0])
    assert (drafted.outcome.draft_s, drafted.outcome.verify_s, drafted.outcome.seconds) == (2.0, 1.0, 3.0)
    assert (plain.outcome.draft_s, plain.outcome.verify_s, plain.outcome.seconds) == (2.0, 1.0, 3.0)
    (alone, _) = engine.step([0, 0])
    assert (alone.outcome.draft_s, alone.outcome.seconds) == (0.0, 1.0)


def test_bad_requests_and_gammas_are_refused() -> None:
    engine = BatchEngine(counting(), None)
    with pytest.raises(ConfigError, match="Call start"):
        engine.step([])
    with pytest.raises(ConfigError, match="0 prompts"):
        engine.start([], max_new_tokens=3)
    with pytest.raises(ConfigError, match="2 prompts, 2 names and 1 budgets"):
        engine.start([[0], [1]], max_new_tokens=[3])
    engine.start([[0], [1]], max_new_tokens=3)
    with pytest.raises(BudgetError, match="Request '3': expected a prompt of at least one token"):
        engine.admit([[0], []], max_new_tokens=3)
    with pytest.raises(BudgetError, match="max_new_tokens"):
        engine.admit([[0]], max_new_tokens=0)
    with pytest.raises(BudgetError, match="at most 10000 tokens, got 10001"):
        engine.admit([[0] * 10_001], max_new_tokens=5)
    assert [row.request for row in engine.running] == ["0", "1"]
    with pytest.raises(ConfigError, match="one gamma for each of 2"):
        engine.step([0])
    with pytest.raises(ConfigError, match="no draft"):
        engine.step([0, 1])
    assert len(engine.step([0, 0])) == 2


def start_and_step(engine: BatchEngine) -> None:
    engine.start([[0], [1]], max_new_tokens=9)
    engine.step([2, 0])


@pytest.mark.parametrize("who", ["target", "draft"])
def test_nan_is_an_error(who: str) -> None:
    broken = BatchTableModel(TableModel(torch.full((3, 3, 3), torch.nan)))
    engine = BatchEngine(broken if who == "target" else counting(), broken if who == "draft" else counting())
    with pytest.raises(ProbabilityError, match=f"{who} returned NaN"):
        start_and_step(engine)


@pytest.mark.parametrize("passes", [1, 2, 4, 6])
def test_an_error_ends_every_request_and_the_next_ones_are_right(passes: int) -> None:
    """Whatever a pass that failed left in the caches is not built upon."""
    table, left = TableModel.random(8), [passes]

    class Failing(BatchTableModel):
        def rows(self) -> TableRows:
            return FailingRows(self)

    class FailingRows(TableRows):
        def extend(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            found = super().extend(*args, **kwargs)
            left[0] -= 1
            if left[0] == 0:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return found

    engine = BatchEngine(Failing(table), Failing(table.perturbed(9, 0.5)))

    def go_on_for_ever() -> None:
        engine.start([[0], [1]], max_new_tokens=40)
        while True:
            engine.step([2, 1][: len(engine.running)])

    with pytest.raises(torch.OutOfMemoryError):
        go_on_for_ever()
    assert engine.running == ()
    asked = [Request(prompt=[i], budget=9, gammas=[3, 0]) for i in range(3)]
    with pytest.raises(ConfigError, match="Expected a running request"):
        engine.step([1])
    run_batch(engine, asked)
    assert_as_alone(Engine(table, table.perturbed(9, 0.5)), asked)


def test_a_device_that_is_not_waited_for_gives_the_same_steps() -> None:
    # The host does not look at drafted tokens on an accelerator: rows run past an end of text, and that is cut off.
    table = TableModel.random(8)
    asked = [Request(prompt=[i], budget=20, gammas=[6, 3, 0]) for i in range(6)]
    options: dict[str, Any] = {"eos_token_ids": frozenset({2, 6})}
    engine = BatchEngine(BatchTableModel(table), BatchTableModel(table.perturbed(9, 0.5)), **options)
    engine._fetch_each = False
    run_batch(engine, asked)
    assert_as_alone(Engine(table, table.perturbed(9, 0.5), **options), asked)
    assert any(step.drafted[-1:] in ((2,), (6,)) for request in asked for step in request.steps)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_on_cuda_a_row_is_the_request_alone(mode: str) -> None:
    device = torch.device("cuda")
    target, draft = (on_device(model, device) for model in tiny_pair())
    rng = np.random.default_rng(0)
    asked = [
        Request(
            prompt=rng.integers(0, 6, 1 + 2 * i).tolist(),
            budget=int(rng.integers(1, 25)),
            gammas=rng.integers(0, 9, 5).tolist(),
            joins=i // 3,
        )
        for i in range(8)
    ]
    options: dict[str, Any] = {
        "eos_token_ids": frozenset({6}),
        "sampling": SamplingConfig(mode=mode, temperature=0.9, seed=1),
    }
    run_batch(BatchEngine(RaggedModel(target), RaggedModel(draft), clock=device_clock(device), **options), asked)
    assert_as_alone(Engine(target, draft, **options), asked, exact=False)
