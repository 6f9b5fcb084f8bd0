# SPDX-License-Identifier: Apache-2.0
"""What our lookup does where vLLM asks a proposer for drafts; vLLM itself is not needed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from speckv.errors import ConfigError
from speckv.integrations.vllm import SpecKVNgramProposer, use
from speckv.ngrams import NgramIndex
from speckv.runtime import Policy
from tests.fakes_vllm import PLACE, TYPICAL, Learner, Script, StopsUnsure, fake_config

PERIODIC = [1, 2, 3, 4] * 4


class Rows:
    """Texts of running requests, in the rows in which vLLM keeps them."""

    def __init__(self, script: Script | Learner, **changes: Any) -> None:
        with use(Policy.of(script, typical=TYPICAL)):
            self.proposer = SpecKVNgramProposer(fake_config(**changes))
        self.texts: list[list[int]] = []
        self.array = np.zeros((4, 128), np.int32)

    def step(self, sampled: Sequence[Sequence[int]]) -> list[list[int]]:
        for row, (text, tokens) in enumerate(zip(self.texts, sampled, strict=True)):
            text.extend(tokens)
            self.array[row, : len(text)] = text
        counts = np.array([*map(len, self.texts), *[0] * (4 - len(self.texts))])
        return self.proposer.propose([list(tokens) for tokens in sampled], counts, self.array)


def test_each_request_has_a_gamma_of_its_own() -> None:
    rows = Rows(script := Script([3, 0, 2]))
    rows.texts = [PERIODIC[:-1], [9, 8, 7, 6]]
    # The second text repeats nothing, so nothing is proposed, whatever gamma is.
    assert rows.step([[4], [5]]) == [[1, 2, 3], []]
    assert rows.step([[1, 2, 3, 4], [9]]) == [[], []]
    assert rows.step([[1], [8]]) == [[2, 3], [7, 6]]
    first, second = script.played
    assert (first.drafted, first.accepted) == ([3, 0], [3, 0])
    assert second.drafted == [0, 0]


def test_a_proposer_is_told_no_budget_so_the_policy_sees_a_typical_one() -> None:
    rows = Rows(script := Script([8]), scheduler_config__max_num_seqs=1)
    rows.texts = [([1, 2] * 64)[:120]]
    # 128 tokens at most: the last token is the target's own.
    drafts = [rows.step([[1]])[0], rows.step([[2]])[0], rows.step([[1, 2, 1]])[0]]
    assert [len(draft) for draft in drafts] == [6, 5, 2]
    (played,) = script.played
    for seen in played.seen:
        np.testing.assert_array_equal(seen[PLACE], TYPICAL[PLACE])


def test_signals_are_those_of_the_counts() -> None:
    rows = Rows(script := Script([2]))
    rows.texts = [PERIODIC[:-1]]
    rows.step([[4]])
    rows.step([[1, 2, 3]])
    index = NgramIndex(4, 2)
    index.extend(PERIODIC)
    guess = index.guess()
    assert guess is not None
    expected = (guess.entropy, guess.confidence, guess.margin)
    np.testing.assert_allclose(script.played[0].outcomes[0].draft_signals[0], expected, rtol=1e-6)


def test_a_stop_rule_ends_a_draft_behind_the_token_it_doubts() -> None:
    class Doubts(StopsUnsure):
        least = 2.0

    rows = Rows(Doubts([5]))
    rows.texts = [PERIODIC[:-1]]
    assert rows.step([[4]]) == [[1]]


def test_requests_are_known_by_their_texts_when_rows_move() -> None:
    rows = Rows(script := Script([1]))
    rows.texts = [[9, 9, 8], PERIODIC[:-1]]
    rows.step([[7], [4]])
    # The first request ends, and the second takes its row.
    rows.texts = [rows.texts[1]]
    assert rows.step([[1, 2]]) == [[3]]
    assert [played.drafted for played in script.played] == [[], [1]]


def test_a_prompt_that_is_still_read_and_a_full_context_draft_nothing() -> None:
    rows = Rows(script := Script([1]))
    rows.texts = [PERIODIC[:], ([1, 2] * 64)[:-1]]
    assert rows.step([[], [2]]) == [[], []]
    assert script.played == []


def test_a_learner_learns_from_every_text_what_its_own_choice_came_to() -> None:
    rows = Rows(learner := Learner([3, 1, 2]))
    rows.texts = [PERIODIC[:-1], [*[7, 8, 9] * 4, 7]]
    assert rows.step([[4], [8]]) == [[1, 2, 3], [9]]
    assert rows.step([[1, 5], [9, 7]]) == [[], [8, 9, 7]]
    rows.step([[6], [8, 9]])
    told = [(said, o.num_drafted, o.num_accepted) for said, o in learner.pairs]
    # A token that was not seen before is followed by nothing, so nothing was drafted behind it.
    assert told == [(3, 3, 1), (1, 1, 1), (2, 0, 0), (3, 3, 1)]


def test_a_learner_that_cannot_tell_requests_apart_needs_the_engine_alone() -> None:
    class Learns(Script):
        learns = True

    with pytest.raises(ConfigError, match=r"max_num_seqs=1.*save_request"):
        Rows(Learns([1]))
    Rows(Learns([1]), scheduler_config__max_num_seqs=1)


def test_vllm_may_ask_it_to_load() -> None:
    assert Rows(Script([1])).proposer.load_model("anything") is None  # type: ignore[func-returns-value]
