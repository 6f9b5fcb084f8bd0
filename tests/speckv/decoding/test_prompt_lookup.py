# SPDX-License-Identifier: Apache-2.0
"""A drafter without a model: what it proposes by hand, and that whatever it proposes the text is the target's."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speckv.decoding import Engine, PromptLookup, SamplingConfig
from speckv.errors import ConfigError
from speckv.ngrams import NgramIndex
from speckv.types import FloatArray
from tests.fakes import TableModel, as_causal, tiny_qwen

RUNS = 1000
QUANTILE = 31.828
"""Chi-square quantile at 1 - 1e-4 with 8 degrees of freedom."""


def index_of(tokens: list[int]) -> NgramIndex:
    index = NgramIndex(4, 2)
    index.extend(tokens)
    return index


@given(st.lists(st.one_of(st.integers(0, 3), st.floats(0, 1)), max_size=60))
def test_an_index_that_was_cut_back_equals_a_fresh_one(moves: list[int | float]) -> None:
    # A whole number is read; a fraction keeps that share of the text.
    index = index_of([])
    for move in moves:
        if isinstance(move, int):
            index.extend([move])
        else:
            index.truncate(int(move * len(index.tokens)))
        fresh = index_of(list(index.tokens))
        assert index.followers == fresh.followers
        assert index.guess() == fresh.guess()  # to the last bit


def test_signals_by_hand() -> None:
    # [1, 2] was followed by 3, 4 and 3; no longer run that the text ends with stood in it before.
    guess = index_of([1, 2, 3, 0, 1, 2, 4, 5, 1, 2, 3, 6, 1, 2]).guess()
    assert guess is not None
    shares = [2 / 3.5, 1 / 3.5, 0.5 / 3.5]
    assert guess.token == 3
    assert guess.confidence == pytest.approx(shares[0])
    assert guess.margin == pytest.approx(shares[0] - shares[1])
    assert guess.entropy == pytest.approx(-sum(p * math.log(p) for p in shares))


def test_the_longest_match_wins_and_then_the_latest() -> None:
    longest = index_of([7, 1, 2, 3, 1, 2, 4, 1, 2, 4, 7, 1, 2]).guess()
    assert longest is not None
    assert (longest.token, longest.margin) == (3, 0.0)  # [7, 1, 2], though [1, 2] was followed by 4 more often
    latest = index_of([1, 2, 3, 1, 2, 4, 5, 1, 2]).guess()
    assert latest is not None
    assert (latest.token, latest.margin) == (4, 0.0)
    assert index_of([1, 2, 3, 4]).guess() is None
    assert index_of([1]).guess() is None


@pytest.mark.parametrize(("longest", "shortest"), [(1, 2), (4, 0)])
def test_lengths_out_of_range(longest: int, shortest: int) -> None:
    with pytest.raises(ConfigError, match="1 <= lookup_shortest <= lookup_longest"):
        PromptLookup(10, longest, shortest)


def decode(engine: Engine, gammas: list[int], budget: int, ask: int = 0) -> list[int]:
    """Decodes; with `ask` it stops wherever so many tokens are drafted."""

    def go_on(signals: FloatArray) -> bool:
        return len(signals) % ask != 0

    engine.start([1, 2, 1, 2, 1], max_new_tokens=budget, request="r")
    for gamma in itertools.cycle(gammas):
        if engine.finish is not None:
            return engine.tokens
        step = engine.step(gamma, go_on if ask else None)
        assert step.outcome.num_emitted >= 1
        assert len(step.drafted) == len(step.outcome.draft_signals) <= gamma
        assert all(np.isfinite(step.outcome.draft_signals).ravel())
    raise AssertionError


@settings(max_examples=80)
@given(
    st.lists(st.integers(0, 16), min_size=1, max_size=20),
    st.integers(0, 1000),
    st.sampled_from(["greedy", "gumbel"]),
    st.integers(1, 60),
    st.integers(0, 3),
)
def test_text_does_not_depend_on_the_lookup(gammas: list[int], seed: int, mode: str, budget: int, ask: int) -> None:
    target = TableModel.random(seed, vocab=5, scale=3.0)
    sampling = SamplingConfig(mode=mode, temperature=0.6, seed=seed)
    eos = frozenset({4})
    engine = Engine(target, PromptLookup(5), eos_token_ids=eos, sampling=sampling)
    plain = Engine(target, None, eos_token_ids=eos, sampling=sampling)
    assert decode(engine, gammas, budget, ask) == decode(plain, [0], budget)
    assert engine.finish == plain.finish


def test_where_nothing_matches_a_step_is_plain_and_a_match_goes_on() -> None:
    # The target counts round and round: the first round knows nothing, the second everything.
    table = torch.full((6, 6, 6), -9.0)
    for last in range(6):
        table[:, last, (last + 1) % 6] = 9.0
    engine = Engine(TableModel(table), PromptLookup(6))
    engine.start([0], max_new_tokens=30)
    for expected in range(2, 8):
        step = engine.step(4)
        assert (step.drafted, step.tokens) == ((), (expected % 6,))
        assert step.outcome.draft_signals.shape == (0, 3)
        assert step.outcome.draft_s > 0  # looking in vain takes time too
    assert engine.step(4).drafted == (2, 3, 4, 5)
    engine = Engine(TableModel(table), PromptLookup(6, longest=3, shortest=3))
    engine.start([4, 5, 0, 3, 4, 5], max_new_tokens=30)
    # [4, 5, 0] was followed by 3, [5, 0, 3] by 4; behind the end of the first text it goes on in its own words.
    assert engine.step(9).drafted == (3, 4, 5, 0, 3, 4, 5, 0, 3)


def test_a_draft_is_dropped_when_a_step_begins_anew() -> None:
    target = TableModel.random(1)
    engine = Engine(target, PromptLookup(7, shortest=1))
    engine.start([*range(7), *range(7)], max_new_tokens=20)
    drafts = []
    for _ in range(2):
        engine.begin_step(5)
        while engine.can_draft:
            engine.draft_token()
        drafts.append(engine.draft_signals.tolist())
    assert drafts[0] == drafts[1]
    assert drafts[0]


@pytest.mark.slow
def test_rejection_sampling_with_a_lookup_follows_the_target() -> None:
    target = TableModel.random(0, vocab=3, scale=1.0)
    sampling = SamplingConfig(mode="rejection", temperature=0.9, seed=1)
    engine = Engine(target, PromptLookup(3, longest=2, shortest=1), sampling=sampling)
    counts, drafted = np.zeros((3, 3)), 0
    for run in range(RUNS):
        engine.start([0, 1, 0, 2, 1, 1, 2, 0, 0, 1], max_new_tokens=6, request=str(run))
        while len(engine.tokens) < 3:
            drafted += len(engine.step(1 + engine.tokens[-1]).drafted)  # gamma depends on the text so far
        counts[engine.tokens[1], engine.tokens[2]] += 1
    assert drafted > RUNS
    first = torch.softmax(target.table[0, 1] / 0.9, -1)
    probs = torch.zeros(3, 3, dtype=torch.float64)
    for y0 in range(3):
        second = torch.softmax(target.table[1, y0] / 0.9, -1)
        for y1 in range(3):
            probs[y1] += first[y0] * second[y1] * torch.softmax(target.table[y0, y1] / 0.9, -1)
    expected = probs.numpy().ravel() * RUNS
    assert float(((counts.ravel() - expected) ** 2 / expected).sum()) < QUANTILE


@pytest.mark.gpu
def test_a_lookup_on_the_host_drafts_for_a_target_on_a_device() -> None:
    texts = []
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        hf = tiny_qwen(0)
        hf.to(device)  # type: ignore[arg-type]
        engine = Engine(replace(as_causal(hf), device=device), PromptLookup(24, shortest=1))
        engine.start([1, 2, 3, 1, 2], max_new_tokens=60)
        steps = []
        while engine.finish is None:
            steps.append(engine.step(4).drafted)
        assert any(steps)
        texts.append((engine.tokens, steps))
    assert texts[0] == texts[1]
