# SPDX-License-Identifier: Apache-2.0
"""Lossless whatever gamma does, and right at every edge."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speckv.decoding import Engine, SamplingConfig
from speckv.errors import BudgetError, ConfigError, ProbabilityError
from tests.fakes import TableModel, as_causal, tiny_qwen

GAMMAS = st.lists(st.integers(0, 16), min_size=1, max_size=30)


def decode(engine: Engine, prompt: list[int], gammas: Iterator[int], budget: int = 40, request: str = "r") -> list[int]:
    engine.start(prompt, max_new_tokens=budget, request=request)
    while engine.finish is None:
        engine.step(next(gammas))
    return engine.tokens


def cycle(gammas: list[int]) -> Iterator[int]:
    while True:
        yield from gammas


@settings(max_examples=60)
@given(GAMMAS, st.integers(0, 1000), st.sampled_from(["greedy", "gumbel"]), st.integers(1, 40), st.floats(0.0, 3.0))
def test_text_does_not_depend_on_gamma(gammas: list[int], seed: int, mode: str, budget: int, noise: float) -> None:
    target = TableModel.random(seed)
    sampling = SamplingConfig(mode=mode, temperature=0.8, top_k=5, top_p=0.95, seed=seed)
    eos = frozenset({6})
    engine = Engine(target, target.perturbed(seed + 1, noise), eos_token_ids=eos, sampling=sampling)
    plain = Engine(target, None, eos_token_ids=eos, sampling=sampling)
    prompt = [1, 2, 3]
    expected = decode(plain, prompt, cycle([0]), budget)
    assert decode(engine, prompt, cycle(gammas), budget) == expected
    assert engine.finish == plain.finish
    assert len(expected) <= budget
    assert 6 not in expected[:-1]


@settings(max_examples=6)
@given(GAMMAS, st.integers(1, 20))
def test_greedy_equals_transformers_generate(gammas: list[int], length: int) -> None:
    hf: Any = tiny_qwen(0)
    engine = Engine(as_causal(hf), as_causal(tiny_qwen(1, like=hf, noise=0.03)))
    prompt = np.random.default_rng(length).integers(0, 24, length).tolist()
    expected = hf.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, length, dtype=torch.long),
        max_new_tokens=30,
        do_sample=False,
    )
    assert decode(engine, prompt, cycle(gammas), 30) == expected[0, length:].tolist()


def test_counts_signals_and_lag_by_hand() -> None:
    # The target says 0 1 2 0 1 2 ... after any pair; the draft agrees except that after token 2 it says 2 again.
    table = torch.full((3, 3, 3), -5.0)
    for last in range(3):
        table[:, last, (last + 1) % 3] = 5.0
    wrong = table.clone()
    wrong[:, 2] = torch.tensor([-5.0, -5.0, 5.0])
    engine = Engine(TableModel(table), TableModel(wrong))
    assert engine.start([0, 0], max_new_tokens=20).tokens == (1,)
    step = engine.step(4)  # the draft proposes 2, then 2 (should be 0), 2, 2
    assert step.drafted == (2, 2, 2, 2)
    assert step.tokens == (2, 0)
    outcome = step.outcome
    assert (outcome.num_drafted, outcome.num_accepted, outcome.num_tested, outcome.num_emitted) == (4, 1, 2, 2)
    assert engine.draft_lag == 0  # after a rejection the draft has read everything but the newest token
    step = engine.step(2)  # 1, 2: both right; the bonus is 0
    assert step.tokens == (1, 2, 0)
    assert engine.draft_lag == 1
    assert engine.step(0).tokens == (1,)
    assert engine.draft_lag == 2
    probs = torch.softmax(torch.tensor([5.0, -5.0, -5.0], dtype=torch.float64), 0)
    entropy = -(probs * probs.log()).sum()
    expected = [entropy, probs[0], probs[0] - probs[1]]
    np.testing.assert_allclose(outcome.draft_signals, np.tile(expected, (4, 1)), atol=1e-6)
    assert outcome.target_confidence == pytest.approx(float(probs[0]), abs=1e-6)


def sure(token: int, size: int = 4) -> TableModel:
    """Always certain of one token."""
    return TableModel(torch.full((size, size, size), -9.0).index_fill(2, torch.tensor([token]), 9.0))


def test_drafting_stops_at_a_drafted_end_of_text() -> None:
    engine = Engine(sure(1), sure(3), eos_token_ids=frozenset({3}))
    engine.start([0], max_new_tokens=10)
    step = engine.step(8)
    assert step.drafted == (3,)
    assert step.tokens == (1,)
    assert engine.finish is None


def test_an_accepted_end_of_text_ends_without_a_bonus() -> None:
    # Token 1 leads to 3 (end of text) in both models; the first token is 1.
    table = torch.full((4, 4, 4), -9.0)
    table[:, 0, 1] = table[:, 1, 3] = table[:, 3, 2] = 9.0
    engine = Engine(TableModel(table), TableModel(table), eos_token_ids=frozenset({3}))
    engine.start([0], max_new_tokens=10)
    step = engine.step(5)
    assert (step.drafted, step.tokens, engine.finish) == ((3,), (3,), "eos")
    assert (step.outcome.num_accepted, step.outcome.num_emitted) == (1, 1)
    with pytest.raises(ConfigError, match="running request"):
        engine.step(1)


def test_end_of_text_from_the_prefill() -> None:
    engine = Engine(sure(3), sure(3), eos_token_ids=frozenset({3}))
    assert engine.start([0], max_new_tokens=10).tokens == (3,)
    assert engine.finish == "eos"


@pytest.mark.parametrize(("budget", "drafted"), [(1, None), (2, 0), (3, 1), (9, 7), (10, 8), (30, 8)])
def test_gamma_is_cut_to_the_budget(budget: int, drafted: int | None) -> None:
    engine = Engine(sure(1), sure(1))
    engine.start([0], max_new_tokens=budget)
    if drafted is None:
        assert engine.finish == "length"
        return
    step = engine.step(8)
    assert step.outcome.num_drafted == drafted
    assert len(step.tokens) == drafted + 1
    assert len(engine.tokens) <= budget


def test_text_ends_where_the_context_does() -> None:
    target = sure(1)
    target.context_limit = 12
    engine = Engine(target, sure(1))
    tokens = decode(engine, [0] * 10, cycle([5]), budget=50)
    assert len(tokens) == 3  # 10 + 2 read, and one more that is never read
    assert engine.finish == "length"
    assert len(decode(engine, [0] * 12, cycle([5]), budget=50)) == 1


def test_bad_requests_are_refused() -> None:
    engine = Engine(sure(1), None)
    with pytest.raises(BudgetError, match="at least one token"):
        engine.start([], max_new_tokens=5)
    with pytest.raises(BudgetError, match="max_new_tokens"):
        engine.start([0], max_new_tokens=0)
    with pytest.raises(BudgetError, match="at most 10000 tokens, got 10001"):
        engine.start([0] * 10_001, max_new_tokens=5)
    with pytest.raises(ConfigError, match="not started"):
        Engine(sure(1), None).step(0)
    engine.start([0], max_new_tokens=5)
    with pytest.raises(ConfigError, match="no draft"):
        engine.step(1)


@pytest.mark.parametrize("who", ["target", "draft"])
def test_nan_is_an_error(who: str) -> None:
    broken = TableModel(torch.full((4, 4, 4), torch.nan))
    engine = Engine(broken if who == "target" else sure(1), broken if who == "draft" else sure(1))
    with pytest.raises(ProbabilityError, match=f"{who} returned NaN"):
        decode(engine, [0], cycle([2]))


def test_a_request_does_not_see_the_one_before() -> None:
    target = TableModel.random(3)
    engine = Engine(target, target.perturbed(4, 1.0), sampling=SamplingConfig(mode="rejection", seed=5))
    first = decode(engine, [1, 2], cycle([3, 0, 5]), request="a")
    decode(engine, [2, 2], cycle([1]), request="b")
    assert decode(engine, [1, 2], cycle([3, 0, 5]), request="a") == first
