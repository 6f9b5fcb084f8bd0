# SPDX-License-Identifier: Apache-2.0
"""The drafter inside llama-cpp-python's own loop, on looked-up logits: the text, the signals, and no leak."""

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speckv.errors import ConfigError
from speckv.integrations.llama_cpp import LookupDraft, PolicyDrafting, draft_model
from speckv.observation import SCHEMA
from speckv.runtime import Policy
from speckv.runtime.constant import ConstantGamma, ConstantPerCompression
from speckv.runtime.signals import signals_of_logits
from speckv.types import Controller
from tests import fakes_llama_cpp
from tests.fakes_llama_cpp import FakeLlama, perturbed, table
from tests.fakes_policies import Scheduled, StopsUnsure

PROMPT = [3, 1, 4, 1, 5]
LOGITS = table(0)
NEAR = perturbed(LOGITS, 1, 1.0)
"""Of a draft that is right about half of the time."""


@pytest.fixture(autouse=True)
def _library(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes_llama_cpp.install(monkeypatch)


def made(controller: Controller, draft: Any = None, **options: Any) -> tuple[FakeLlama, PolicyDrafting]:
    policy = Policy.of(controller, cost_ratio={"fp16": 0.3}, fallback={"fp16": 1})
    drafter = draft_model(policy, draft or FakeLlama(NEAR, n_ctx=160), **options)
    target = FakeLlama(LOGITS, n_ctx=160, logits_all=True, flash_attn=True, draft_model=drafter)
    drafter.attach(target)
    return target, drafter


def listen(target: FakeLlama) -> list[tuple[list[int], list[int]]]:
    """Text and draft of every call that comes."""
    calls: list[tuple[list[int], list[int]]] = []
    drafter = target.draft_model

    def call(ids: NDArray[np.intc]) -> NDArray[np.intc]:
        found: NDArray[np.intc] = drafter(ids)
        calls.append((ids.tolist(), found.tolist()))
        return found

    target.draft_model = call
    return calls


def text(llama: FakeLlama, prompt: Sequence[int], count: int, seed: int | None = None) -> list[int]:
    return list(itertools.islice(llama.generate(prompt, seed=seed), count))


def plain(prompt: Sequence[int], count: int, seed: int | None = None) -> list[int]:
    return text(FakeLlama(LOGITS, n_ctx=160, flash_attn=True), prompt, count, seed)


prompts = st.lists(st.integers(0, 11), min_size=1, max_size=12)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), prompts, st.none() | st.integers(0, 99), st.booleans())
@settings(max_examples=150, derandomize=True)
def test_the_text_is_the_targets_own(gammas: list[int], prompt: list[int], seed: int | None, lookup: bool) -> None:
    schedule = Scheduled(lambda step: gammas[step % len(gammas)])
    target, drafter = made(schedule, LookupDraft() if lookup else None)
    assert text(target, prompt, 60, seed) == plain(prompt, 60, seed)
    assert not drafter.policy.warnings


def test_drafts_are_as_long_as_the_policy_says() -> None:
    schedule = Scheduled(lambda step: [0, 3, 0, 0, 5, 1][step % 6])
    target, drafter = made(schedule)
    text(target, PROMPT, 60)
    widths = target.passes[1:]  # without the prompt's
    assert widths == [1 + gamma for gamma in schedule.chosen[0][: len(widths)]]
    assert drafter.totals.requests == 1
    assert drafter.totals.drafted == sum(schedule.chosen[0])
    assert 0 < drafter.totals.accepted < drafter.totals.drafted


def test_the_draft_catches_up_in_one_pass_and_proposes_what_a_fresh_one_would() -> None:
    gammas, draft = [2, 0, 0, 0, 4, 0, 3], FakeLlama(NEAR, n_ctx=160)
    target, _ = made(Scheduled(lambda step: gammas[step % 7]), draft)
    told = listen(target)
    text(target, PROMPT, 80)
    for ids, found in told:
        assert found == text(FakeLlama(NEAR, n_ctx=160), ids, len(found))
    assert draft.passes[0] == len(PROMPT) + 1  # the prompt once, never again
    assert len(draft.passes) == sum(len(found) for _, found in told)
    assert sum(draft.passes) < sum(len(found) for _, found in told) + len(PROMPT) + 80


def test_what_became_of_each_draft_is_told() -> None:
    schedule = Scheduled.random(3)
    target, drafter = made(schedule)
    found = text(target, PROMPT, 80)
    emitted = 1
    fresh = FakeLlama(NEAR, n_ctx=160)
    for outcome in schedule.outcomes[0]:
        ahead = text(fresh, PROMPT + found[:emitted], outcome.num_drafted)
        kept = next((i for i, t in enumerate(ahead) if t != found[emitted + i]), len(ahead))
        assert (outcome.num_accepted, outcome.num_emitted) == (kept, kept + 1)
        emitted += outcome.num_emitted
    assert emitted > 70
    assert sum(outcome.num_accepted for outcome in schedule.outcomes[0]) == drafter.totals.accepted


def test_signals_are_those_of_the_logits() -> None:
    schedule = Scheduled(lambda _: 2)
    target, _ = made(schedule, temperature=0.7)
    found = text(target, PROMPT, 30)
    ids = [*PROMPT, *found]
    emitted = 1
    for observation, outcome in zip(schedule.seen[0], [None, *schedule.outcomes[0]], strict=False):
        emitted += outcome.num_emitted if outcome else 0
        behind = len(PROMPT) + emitted - 2
        entropy, confidence, _ = signals_of_logits(LOGITS[ids[behind - 1], ids[behind]], 0.7)
        seen = observation[[SCHEMA.index("target_entropy"), SCHEMA.index("target_confidence")]]
        np.testing.assert_allclose(seen, [entropy, confidence], rtol=1e-5)
    first = schedule.outcomes[0][0].draft_signals
    at = [*PROMPT, found[0]]
    expected = signals_of_logits(NEAR[at[-2], at[-1]])
    np.testing.assert_allclose(first[0], expected, rtol=1e-5)
    np.testing.assert_allclose(first[1], signals_of_logits(NEAR[at[-1], int(NEAR[at[-2], at[-1]].argmax())]), rtol=1e-5)


def test_a_policy_that_never_drafts_wants_no_drafter_in_the_target() -> None:
    per_compression = ConstantPerCompression({"fp16": 2, "nf4": 0})
    policy = Policy.of(per_compression, cost_ratio={"fp16": 0.3, "nf4": 0.5})
    never = draft_model(policy, FakeLlama(NEAR, n_ctx=160), compression="nf4")
    assert (never.never_drafts, never.target_options()) == (True, {})
    never.attach(FakeLlama(LOGITS, n_ctx=160, flash_attn=True))
    drafter = draft_model(policy, FakeLlama(NEAR, n_ctx=160))
    assert drafter.target_options() == {"draft_model": drafter, "logits_all": True}
    with pytest.raises(ConfigError, match="got one with another or none"):
        drafter.attach(FakeLlama(LOGITS, n_ctx=160, flash_attn=True))
    # Whoever gives it to the target all the same gets plain decoding.
    target = FakeLlama(LOGITS, n_ctx=160, flash_attn=True, draft_model=never, logits_all=True)
    never.attach(target)
    assert text(target, PROMPT, 40) == plain(PROMPT, 40)
    assert never.totals.drafted == 0


def test_without_a_target_its_signals_are_typical_ones() -> None:
    schedule = Scheduled(lambda _: 2)
    typical = np.linspace(0.1, 0.9, SCHEMA.size).astype(np.float32)
    policy = Policy.of(schedule, cost_ratio={"fp16": 0.3}, typical=typical)
    drafter = draft_model(policy, FakeLlama(NEAR, n_ctx=160))
    target = FakeLlama(LOGITS, n_ctx=160, logits_all=True, draft_model=drafter)
    assert text(target, PROMPT, 40) == plain(PROMPT, 40)
    column = SCHEMA.index("target_entropy")
    assert {float(o[column]) for o in schedule.seen[0]} == {float(typical[column])}
    assert not policy.warnings


def test_without_a_budget_the_place_in_the_text_is_a_typical_one() -> None:
    schedule = Scheduled(lambda _: 2)
    typical = np.linspace(0.1, 0.9, SCHEMA.size).astype(np.float32)
    target = FakeLlama(LOGITS, n_ctx=160, logits_all=True, flash_attn=True)
    columns = [SCHEMA.index("position"), SCHEMA.index("tokens_left")]
    for budget, told in ((None, False), (40, True)):
        policy = Policy.of(schedule, cost_ratio={"fp16": 0.3}, typical=typical)
        drafter = draft_model(policy, FakeLlama(NEAR, n_ctx=160), max_new_tokens=budget)
        target.draft_model = drafter
        drafter.attach(target)
        assert text(target, PROMPT, 30) == plain(PROMPT, 30)
        seen = np.array([observation[columns] for observation in schedule.seen[-1]])
        assert bool((seen == typical[columns]).all()) != told


def test_another_targets_logits_are_not_taken_for_this_ones() -> None:
    schedule = Scheduled(lambda _: 2)
    target, drafter = made(schedule)
    text(target, PROMPT, 10)
    other = FakeLlama(LOGITS, n_ctx=160, logits_all=True, flash_attn=True, draft_model=drafter)
    assert text(other, [*PROMPT, 7, 7, 7, 7, 7, 7], 20) == plain([*PROMPT, 7, 7, 7, 7, 7, 7], 20)
    assert set(drafter.policy.warnings) == {"a signal of the target that cannot be"}


def test_constants_compute_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("nobody looks at them")

    monkeypatch.setattr("speckv.integrations.llama_cpp.proposers.signals_of_logits", refuse)
    monkeypatch.setattr("speckv.integrations.llama_cpp.library.signals_of_logits", refuse)
    target, drafter = made(ConstantGamma(3))
    assert text(target, PROMPT, 40) == plain(PROMPT, 40)
    assert drafter.totals.drafted > 3
    assert not drafter.policy.warnings


def test_a_token_policy_ends_drafts_and_keeps_the_newest_token() -> None:
    stops = StopsUnsure(0.5)
    target, drafter = made(stops)
    assert text(target, PROMPT, 60) == plain(PROMPT, 60)
    lengths = {outcome.num_drafted for outcome in stops.outcomes[0]}
    assert len(lengths) > 2
    for outcome in stops.outcomes[0]:
        assert (outcome.draft_signals[:-1, 1] >= 0.5).all()
        assert outcome.num_drafted == 8 or outcome.draft_signals[-1, 1] < 0.5
    assert not drafter.policy.warnings


def test_a_drafted_end_of_text_ends_the_draft() -> None:
    end = plain(PROMPT, 40)[10]
    for draft in (FakeLlama(LOGITS, n_ctx=160, ends=[end]), LookupDraft(2, 1)):
        target, drafter = made(ConstantGamma(6), draft)
        target.ends = frozenset([end])
        drafter.attach(target)
        drafts = listen(target)
        text(target, PROMPT, 40)
        assert any(end in found for _, found in drafts)
        assert all(end not in found[:-1] for _, found in drafts)


def alone(prompt: Sequence[int], count: int, controller: Scheduled, **options: Any) -> Scheduled:
    target, _ = made(controller, **options)
    text(target, prompt, count)
    return controller


def schedule() -> Scheduled:
    return Scheduled(lambda step: [3, 0, 4, 1][step % 4])


def same_requests(one: Scheduled, other: Scheduled) -> None:
    assert one.chosen == other.chosen
    for a, b in zip(one.seen, other.seen, strict=True):
        np.testing.assert_array_equal(a, b)
    for mine, theirs in zip(one.outcomes, other.outcomes, strict=True):
        assert [o.num_accepted for o in mine] == [o.num_accepted for o in theirs]


def second_prompts(output: list[int]) -> dict[str, list[int]]:
    return {
        "the same prompt": PROMPT,
        "another prompt": [9, 8, 7],
        "a prompt with the same beginning": [*PROMPT[:3], 9, 9, 9, 2],
        "a longer prompt with the same beginning": [*PROMPT, 9, 9],
        "the next turn of a conversation": [*PROMPT, *output, 9, 9, 2, 1, 9, 9, 9],
        "the next turn, a short one": [*PROMPT, *output, 9],
        "its own output, cut": [*PROMPT, *output[:-3]],
    }


@pytest.mark.parametrize("what", second_prompts([]))
@pytest.mark.parametrize("count", [2, 7, 30])
def test_nothing_leaks_from_one_request_into_the_next(what: str, count: int) -> None:
    both, draft = schedule(), FakeLlama(NEAR, n_ctx=160)
    target, drafter = made(both, draft, max_new_tokens=64)
    output = text(target, PROMPT, count)
    second = second_prompts(output)[what]
    assert text(target, second, 40) == plain(second, 40)
    assert drafter.totals.requests == 2
    by_themselves = alone(PROMPT, count, schedule(), max_new_tokens=64)
    follower = alone(second, 40, schedule(), max_new_tokens=64)
    by_themselves.seen += follower.seen
    by_themselves.chosen += follower.chosen
    by_themselves.outcomes += follower.outcomes
    same_requests(both, by_themselves)


@pytest.mark.parametrize("count", range(2, 25))
def test_a_text_that_goes_on_behind_its_budget_is_a_new_request(count: int) -> None:
    both = schedule()
    target, drafter = made(both, max_new_tokens=count)
    output = text(target, PROMPT, count)
    drafter.max_new_tokens = 64
    text(target, [*PROMPT, *output], 30)
    follower = alone([*PROMPT, *output], 30, schedule(), max_new_tokens=64)
    np.testing.assert_array_equal(both.seen[-1], follower.seen[0])
    assert drafter.totals.requests == 2


def test_a_request_can_be_announced() -> None:
    both = schedule()
    target, drafter = made(both, max_new_tokens=64)
    output = text(target, PROMPT, 9)
    drafter.new_request()
    text(target, [*PROMPT, *output], 30)
    follower = alone([*PROMPT, *output], 30, schedule(), max_new_tokens=64)
    np.testing.assert_array_equal(both.seen[-1], follower.seen[0])


def test_no_draft_exceeds_the_budget() -> None:
    target, _ = made(ConstantGamma(9), max_new_tokens=20)
    text(target, PROMPT, 20)
    assert target.n_tokens <= len(PROMPT) + 20


def test_contexts_are_never_exceeded() -> None:
    for target_ctx, draft_ctx in ((40, 160), (160, 24)):
        policy = Policy.of(ConstantGamma(7))
        drafter = draft_model(policy, FakeLlama(NEAR, n_ctx=draft_ctx))
        target = FakeLlama(LOGITS, n_ctx=target_ctx, logits_all=True, flash_attn=True, draft_model=drafter)
        drafter.attach(target)
        count = min(target_ctx, 60) - len(PROMPT)
        assert text(target, PROMPT, count) == plain(PROMPT, count)
        assert not policy.warnings


def test_a_draft_that_fails_leaves_the_text_alone(caplog: pytest.LogCaptureFixture) -> None:
    draft = FakeLlama(NEAR, n_ctx=160)
    target, drafter = made(ConstantGamma(3), draft)
    running = target.generate(PROMPT)
    found = list(itertools.islice(running, 20))
    draft.fails = True
    with caplog.at_level(logging.WARNING):
        found += itertools.islice(running, 20)
    draft.fails = False
    found += itertools.islice(running, 20)
    assert found == plain(PROMPT, 60)
    assert list(drafter.policy.warnings) == ["the draft failed (RuntimeError: llama_decode returned -1)"]
    assert caplog.text.count("the draft failed") == 1


def test_a_policy_of_another_vocabulary_gives_its_fallback() -> None:
    policy = Policy.of(
        Scheduled(lambda _: 5), cost_ratio={"fp16": 0.3}, fallback={"fp16": 2}, trained_on={"vocab_size": 9}
    )
    drafter = draft_model(policy, FakeLlama(NEAR, n_ctx=160))
    target = FakeLlama(LOGITS, n_ctx=160, logits_all=True, flash_attn=True, draft_model=drafter)
    drafter.attach(target)
    assert text(target, PROMPT, 30) == plain(PROMPT, 30)
    assert set(target.passes[1:]) == {3}
    assert sum(policy.warnings.values()) == 1


def test_the_callers_own_work_is_no_part_of_the_targets_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("speckv.integrations.llama_cpp.library.time.perf_counter", lambda: now)
    evaluate = FakeLlama.eval

    def slow(self: FakeLlama, tokens: Sequence[int]) -> None:
        nonlocal now
        now += 2.0 if self.draft_model is not None else 0.5
        evaluate(self, tokens)

    monkeypatch.setattr(FakeLlama, "eval", slow)
    schedule = Scheduled(lambda _: 2)
    target, _ = made(schedule)
    for _ in itertools.islice(target.generate(PROMPT), 20):
        now += 7.0  # the caller prints a token
    outcomes = schedule.outcomes[0]
    assert len(outcomes) > 3
    assert {outcome.verify_s for outcome in outcomes} == {2.0}
