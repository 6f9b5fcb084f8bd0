# SPDX-License-Identifier: Apache-2.0
"""A session in someone else's loop: it clamps, it distrusts, it never raises."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speckv.observation import SCHEMA
from speckv.runtime import Policy, PolicyController, Session
from speckv.runtime.constant import ConstantGamma
from speckv.types import FloatArray, IntArray, StepOutcome
from tests.speckv.test_runtime_learned import random_policy


class Watching(ConstantGamma):
    """Says 5, drafts on while the newest token is likely, and keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__(5)
        self.seen: list[FloatArray] = []
        self.outcomes: list[StepOutcome] = []
        self.learns = True

    def __deepcopy__(self, memo: object) -> "Watching":
        return self

    def act(self, observation: FloatArray) -> int:
        self.seen.append(observation.copy())
        return 5

    def go_on(self, observation: FloatArray) -> bool:
        return bool(observation[SCHEMA.size + 2] > 0.5)

    def go_on_batch(self, observations: FloatArray) -> IntArray:
        raise NotImplementedError

    def learn(self, outcome: StepOutcome) -> None:
        self.outcomes.append(outcome)


def opened(controller: Any = None, **options: Any) -> tuple[Policy, Session]:
    policy = Policy.of(
        controller or Watching(), fallback={"fp16": 2}, cost_ratio={"fp16": 0.3}, trained_on={"vocab_size": 10}
    )
    session = policy.session(**{"max_new_tokens": 64, **options})
    session.start(0.5, 0.9)
    return policy, session


def test_a_step_is_taken_in() -> None:
    watching = Watching()
    policy, session = opened(watching)
    assert session.begin_step() == 5
    assert session.go_on(0.2, 0.9, 0.8)
    assert not session.go_on(2.0, 0.3, 0.1)
    session.end_step(1, 0.7, 0.6, seconds=0.25)
    (outcome,) = watching.outcomes
    assert (outcome.gamma, outcome.num_drafted, outcome.num_accepted, outcome.num_tested, outcome.num_emitted) == (
        2,
        2,
        1,
        2,
        2,
    )
    assert outcome.seconds == 0.25
    np.testing.assert_allclose(outcome.draft_signals, [[0.2, 0.9, 0.8], [2.0, 0.3, 0.1]], rtol=1e-6)
    session.begin_step()
    assert watching.seen[1][SCHEMA.index("accepted_fraction")] == 0.5
    assert watching.seen[1][SCHEMA.index("target_entropy")] == np.float32(0.7)
    assert not policy.warnings


def test_gamma_leaves_room_for_the_bonus_token() -> None:
    _, session = opened(max_new_tokens=4)
    assert session.begin_step() == 2
    session.end_step(2, 0.1, 0.9, num_drafted=2, seconds=0.1)
    assert session.tokens_left == 0
    assert session.begin_step() == 0


def test_a_draft_may_be_dropped_or_cut() -> None:
    """As by an engine without room: nothing is distrusted, and the controller is not told of a dropped draft."""
    watching = Watching()
    policy, session = opened(watching)
    session.begin_step()
    session.go_on(0.2, 0.9, 0.8)
    session.go_on(0.3, 0.8, 0.7)
    session.end_step(0, 0.7, 0.6, num_drafted=0, seconds=0.1)
    assert (policy.warnings, watching.outcomes, session.tokens_left) == ({}, [], 62)
    session.begin_step()
    assert watching.seen[1][SCHEMA.index("draft_lag")] == 0.0  # the draft read the newest token before it was dropped
    assert watching.seen[1][SCHEMA.index("acceptance_ema")] == watching.seen[0][SCHEMA.index("acceptance_ema")]
    session.go_on(0.2, 0.9, 0.8)
    session.go_on(0.3, 0.8, 0.7)
    session.end_step(1, 0.7, 0.6, num_drafted=1, seconds=0.1)
    assert [outcome.num_drafted for outcome in watching.outcomes] == [1]
    session.begin_step()
    session.end_step(0, 0.7, 0.6, num_drafted=0, seconds=0.1)
    session.begin_step()
    assert watching.seen[3][SCHEMA.index("draft_lag")] == np.float32(2 / 16)  # nothing was drafted, behind a full draft
    assert [outcome.num_drafted for outcome in watching.outcomes] == [1, 0]
    assert not policy.warnings


BAD_SIGNALS = [(math.nan, 0.5), (0.1, math.inf), (-1.0, 0.5), (1e9, 0.5), (0.1, 1.5), (0.1, -0.2)]


@pytest.mark.parametrize("bad", BAD_SIGNALS)
def test_signals_that_cannot_be_give_the_fallback_once(bad: tuple[float, float]) -> None:
    policy, session = opened()
    session.begin_step()
    session.end_step(0, *bad, num_drafted=0, seconds=0.1)
    assert session.begin_step() == 2
    session.end_step(0, 0.1, 0.9, num_drafted=0, seconds=0.1)
    assert session.begin_step() == 5
    assert policy.warnings == {"a signal of the target that cannot be": 1}


@pytest.mark.parametrize("bad", BAD_SIGNALS)
def test_a_bad_signal_of_the_draft_ends_belief_for_this_step_and_the_next(bad: tuple[float, float]) -> None:
    policy, session = opened()
    session.begin_step()
    assert session.go_on(*bad, 0.1)
    assert not session.go_on(0.1, 0.9, 0.8)
    session.end_step(2, 0.1, 0.9, seconds=0.1)
    assert session.begin_step() == 2
    session.end_step(0, 0.1, 0.9, seconds=0.1)
    assert session.begin_step() == 5
    assert policy.warnings == {"a signal of the draft that cannot be": 1}


def test_another_vocabulary_gives_the_fallback_for_good() -> None:
    policy, session = opened(vocab_size=11)
    for _ in range(3):
        assert session.begin_step() == 2
        session.end_step(0, 0.1, 0.9, seconds=0.1)
    assert list(policy.warnings.values()) == [1]
    assert opened(vocab_size=10)[1].begin_step() == 5


def test_hidden_signals_are_seen_as_typical() -> None:
    watching = Watching()
    typical = np.linspace(0.1, 0.9, SCHEMA.size).astype(np.float32)
    policy = Policy.of(watching, typical=typical, fallback={"fp16": 2}, cost_ratio={"fp16": 0.3})
    session = policy.session(max_new_tokens=64, hidden=["target", "draft"])
    session.start()
    session.begin_step()
    session.end_step(3, num_drafted=5, seconds=0.1)
    session.begin_step()
    names = [n for n in SCHEMA.names if n.startswith(("draft_", "target_")) and n != "draft_lag"]
    places = [SCHEMA.index(n) for n in names]
    np.testing.assert_array_equal(watching.seen[1][places], typical[places])
    assert watching.seen[1][SCHEMA.index("accepted_fraction")] == np.float32(0.6)
    assert not policy.warnings


@pytest.mark.parametrize(("most", "hidden"), [(40, ["budget"]), (None, [])])
def test_a_budget_that_nobody_tells_is_seen_as_typical(most: int | None, hidden: list[str]) -> None:
    """Before a step and inside it, at the start of a text and far on; the bound still bounds drafts."""
    inside: list[FloatArray] = []

    class Inside(Watching):
        def go_on(self, observation: FloatArray) -> bool:
            inside.append(observation.copy())
            return True

    watching = Inside()
    typical = np.linspace(0.1, 0.9, SCHEMA.size).astype(np.float32)
    policy = Policy.of(watching, typical=typical, cost_ratio={"fp16": 0.3})
    session = policy.session(max_new_tokens=most, hidden=hidden)
    session.start(0.5, 0.9)
    gammas = []
    for _ in range(7):
        gammas.append(session.begin_step())
        for _ in range(gammas[-1]):
            session.go_on(0.2, 0.9, 0.8)
        session.end_step(gammas[-1], 0.7, 0.6, seconds=0.1)
    places = [SCHEMA.index(name) for name in ("position", "tokens_left")]
    for seen in (*watching.seen, *inside):
        np.testing.assert_array_equal(seen[places], typical[places])
    # 1 token of the prefill, then 6 a step: 3 of 40 are left behind the sixth, one of them the target's own.
    assert gammas == [5, 5, 5, 5, 5, 5, 5 if most is None else 2]
    assert session.tokens_left > 1_000_000 if most is None else session.tokens_left == 0
    # All else is what happened.
    others = [SCHEMA.index(name) for name in ("previous_gamma", "accepted_fraction", "target_entropy")]
    np.testing.assert_allclose(watching.seen[3][others], [5 / 16, 1.0, 0.7], rtol=1e-6)
    assert not policy.warnings


class Failing(Watching):
    def act(self, observation: FloatArray) -> int:  # noqa: ARG002
        raise ZeroDivisionError("by nothing")


def test_a_controller_that_fails_gives_the_fallback() -> None:
    policy, session = opened(Failing())
    assert session.begin_step() == 2
    session.end_step(0, 0.1, 0.9, seconds=0.1)
    assert policy.warnings == {"the controller failed (ZeroDivisionError: by nothing)": 1}


def test_counts_and_times_that_cannot_be_are_cut() -> None:
    policy, session = opened()
    session.begin_step()
    session.end_step(7, 0.1, 0.9, num_drafted=2, seconds=-1.0)
    assert session.tokens_left == 64 - 1 - 3
    assert set(policy.warnings) == {"a step's counts that cannot be", "a step's time that cannot be"}


numbers = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-1, 2)


@given(st.lists(st.tuples(st.integers(-3, 20), numbers, numbers, numbers), max_size=30))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_nothing_raises_whatever_comes(steps: list[tuple[int, float, float, float]]) -> None:
    _, session = opened(PolicyController(random_policy()), max_new_tokens=20)
    for count, a, b, c in steps:
        gamma = session.begin_step()
        assert 0 <= gamma <= 16
        for _ in range(min(gamma, max(count, 0))):
            if not session.go_on(a, b, c):
                break
        session.end_step(count, a, b, seconds=c)


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def timed_step(session: Session, clock: Clock, **told: Any) -> None:
    """Drafts two tokens, in 3 s and 1 s, and verifies them in 5 s."""
    session.begin_step()
    for seconds in (3.0, 1.0):
        clock.wait(seconds)
        session.go_on(0.2, 0.9, 0.8)
    clock.wait(5.0)
    session.end_step(1, 0.7, 0.6, **told)


def passes_of(outcome: StepOutcome) -> tuple[float, float, float, float]:
    return outcome.seconds, outcome.draft_s, outcome.first_draft_s, outcome.verify_s


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, (9.0, 4.0, 3.0, 5.0)),
        ({"verify_s": 4.5}, (8.5, 4.0, 3.0, 4.5)),  # the rest was the caller's own work
        ({"draft_s": 3.5, "first_draft_s": 2.5, "verify_s": 4.5}, (8.0, 3.5, 2.5, 4.5)),
        ({"draft_s": 3.5, "verify_s": 4.5}, (8.0, 3.5, 1.75, 4.5)),
        ({"seconds": 7.0}, (7.0, 0.0, 0.0, 0.0)),
        ({"num_drafted": 1}, (9.0, 0.0, 0.0, 0.0)),  # both were drafted: the time of one is not known
        ({"draft_s": -1.0, "verify_s": 4.0}, (3.0, 0.0, 0.0, 0.0)),
        ({"verify_s": math.nan}, (9.0, 0.0, 0.0, 0.0)),
    ],
)
def test_passes_are_timed_or_told(told: dict[str, float], expected: tuple[float, ...]) -> None:
    watching, clock = Watching(), Clock()
    _, session = opened(watching, clock=clock)
    timed_step(session, clock, **told)
    assert passes_of(watching.outcomes[-1]) == pytest.approx(expected)


def test_a_plain_step_is_one_pass() -> None:
    watching, clock = Watching(), Clock()
    _, session = opened(watching, clock=clock)
    session.begin_step()
    clock.wait(2.0)
    session.end_step(0, 0.7, 0.6, num_drafted=0)
    assert passes_of(watching.outcomes[-1]) == (2.0, 0.0, 0.0, 2.0)


def test_a_loop_whose_calls_come_later_has_whole_steps_timed() -> None:
    watching, clock = Watching(), Clock()
    _, session = opened(watching, clock=clock, passes=False)
    timed_step(session, clock)
    assert passes_of(watching.outcomes[-1]) == (9.0, 0.0, 0.0, 0.0)
    timed_step(session, clock, draft_s=1.0, verify_s=2.0)
    assert passes_of(watching.outcomes[-1]) == (3.0, 1.0, 0.5, 2.0)


class Ahead(Watching):
    gamma_ahead = 3


def test_without_the_drafts_signals_the_length_that_is_best_beforehand_is_drafted() -> None:
    _, session = opened(Ahead(), hidden={"draft"})
    assert session.begin_step() == 3
    assert [session.go_on(), session.go_on(), session.go_on()] == [True, True, False]
