# SPDX-License-Identifier: Apache-2.0
"""Learners that serve several requests in turn: each outcome is learned as that of its own request's choice."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from speckv.agents.bandits.base import Bandit
from speckv.agents.bandits.tapout import TapOut
from speckv.agents.registry import AGENTS, TrainingData, agent_settings, begin_learner
from speckv.runtime import Policy, Session
from speckv.types import InterleavedLearner, StepOutcome
from tests.agents.test_agents_contract import OPTIONS
from tests.fakes_traces import make_cost_table, random_traces

LEARNERS = sorted(name for name, agent in AGENTS.items() if agent.online)
RULES = [f"tapout:{rule}" for rule in range(5)]
"""Whose rules remember steps, some of them."""
NUM_TURNS = 60


@pytest.fixture(scope="module", params=[*LEARNERS, *RULES])
def made(request: pytest.FixtureRequest) -> Bandit:
    name, _, rule = request.param.partition(":")
    _, settings = agent_settings({"name": name, **OPTIONS.get(name, {})})
    train = random_traces(num_prompts=8, seed=5).select(split="train")
    learner = begin_learner(name, settings, TrainingData(train=train, cost=make_cost_table(), seed=0))
    assert isinstance(learner, Bandit)
    if isinstance(learner, TapOut) and rule:
        learner.counts[:], learner.means[:, int(rule)] = 1000.0, 1.0
    return learner


@pytest.fixture
def learner(made: Bandit) -> Bandit:
    return copy.deepcopy(made)


class Requests:
    """Requests of one policy, at whose sessions chance comes by, one call at a time.

    Attributes:
        asked: Request -> observation and gamma of its newest decision.
    """

    def __init__(self, learner: Bandit, seed: int) -> None:
        self.policy = Policy.of(learner, cost_ratio={"fp16": 0.3, "nf4": 0.5})
        assert self.policy.learns
        assert self.policy.interleaves
        compressions = ("fp16", "nf4", "fp16")
        self.sessions = [self.policy.session(max_new_tokens=2000, compression=name) for name in compressions]
        for session in self.sessions:
            session.start(0.5, 0.8)
        self.asked: list[tuple[np.ndarray, int] | None] = [None] * len(self.sessions)
        self._rng = np.random.default_rng(seed)

    def signals(self, size: int) -> list[float]:
        return [self._rng.uniform(0, 3), *self._rng.uniform(0.05, 1.0, size - 1)]

    def step(self, which: int, seconds: float) -> None:
        """Half a step of a request: a decision and its draft, or what came of them."""
        session = self.sessions[which]
        if self.asked[which] is None:
            gamma = session.begin_step()
            self.asked[which] = session._memory.before.copy(), gamma
            more = gamma > 0
            while more:
                more = session.go_on(*self.signals(3))
        else:
            drafted = len(session._memory.drafted)
            session.end_step(int(self._rng.integers(0, drafted + 1)), *self.signals(2), seconds=seconds)
            self.asked[which] = None

    def turns(self, number: int) -> list[int]:
        return [int(which) for which in self._rng.integers(0, len(self.sessions), number)]


def test_an_outcome_is_learned_as_that_of_its_own_requests_choice(
    learner: Bandit, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[tuple[int, int, np.ndarray, StepOutcome]] = []
    update = type(learner).update

    def noting(self: Bandit, compression: int, arm: int, observation: np.ndarray, outcome: StepOutcome) -> None:
        learned.append((compression, arm, observation.copy(), outcome))
        update(self, compression, arm, observation, outcome)

    monkeypatch.setattr(type(learner), "update", noting)
    requests = Requests(learner, seed=0)
    crossed = 0
    for turn, which in enumerate(requests.turns(NUM_TURNS)):
        asked = requests.asked[which]
        others = [other for k, other in enumerate(requests.asked) if k != which and other is not None]
        before = len(learned)
        requests.step(which, seconds=1.0 + turn)
        if asked is None:
            assert len(learned) == before
            continue
        ((compression, arm, observation, outcome),) = learned[before:]
        assert outcome.seconds == 1.0 + turn
        np.testing.assert_array_equal(observation, asked[0])
        assert compression == (0, 1, 0)[which]
        if not hasattr(learner, "go_on"):
            assert learner.arms[arm] == asked[1] == outcome.gamma
        crossed += bool(others)
    # Were they never in each other's way, nothing would have been shown.
    assert crossed > 10
    assert not requests.policy.warnings


def parts(learner: Any) -> dict[str, bytes]:
    return {name: pickle.dumps(value) for name, value in vars(learner).items()}


def test_nothing_of_a_request_stays_where_another_would_find_it(learner: Bandit) -> None:
    """What a request changes of a learner is learned, drawn, or put aside with it."""
    requests = Requests(learner, seed=1)
    before, changed = parts(learner), set[str]()
    for turn, which in enumerate(requests.turns(NUM_TURNS)):
        requests.step(which, seconds=1.0 + turn)
        after = parts(learner)
        changed |= {name for name, content in after.items() if content != before[name]}
    assert changed
    # A network's buffers, among `features`, are written anew before they are read.
    assert changed <= {"rng", "bank", "features", *learner.learned, *learner.of_request}


def test_a_request_that_is_put_aside_stays_as_it_is(learner: Bandit) -> None:
    requests = Requests(learner, seed=2)
    for turn, which in enumerate(requests.turns(NUM_TURNS)):
        aside = [aside_of(session) for k, session in enumerate(requests.sessions) if k != which]
        requests.step(which, seconds=1.0 + turn)
        assert aside == [aside_of(session) for k, session in enumerate(requests.sessions) if k != which]


def aside_of(session: Session) -> bytes:
    return pickle.dumps(session._controller._request)  # type: ignore[attr-defined]


def test_all_learners_interleave() -> None:
    assert len(LEARNERS) > 8


def test_one_request_after_the_other_learns_as_without_turns(learner: Bandit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same decisions and the same knowledge as the learner itself, asked directly."""
    assert isinstance(learner, InterleavedLearner)
    alone, told, learn = copy.deepcopy(learner), list[StepOutcome](), type(learner).learn

    def noting(self: Bandit, outcome: StepOutcome) -> None:
        learn(self, outcome)
        if self is learner:
            told.append(outcome)

    monkeypatch.setattr(type(learner), "learn", noting)
    requests = Requests(learner, seed=3)
    rng = np.random.default_rng(4)
    for number in range(3):
        session = requests.policy.session(max_new_tokens=2000, compression="fp16")
        session.start(0.5, 0.8)
        alone.reset()
        for turn in range(12):
            gamma = session.begin_step()
            assert alone.act(session._memory.before) == gamma
            more = gamma > 0
            while more:
                more = session.go_on(*requests.signals(3))
                if hasattr(alone, "go_on") and len(session._memory.drafted) < gamma:
                    assert alone.go_on(session._memory.inside) == more
            kept = int(rng.integers(0, len(session._memory.drafted) + 1))
            session.end_step(kept, 0.3, 0.9, seconds=1.0 + number + turn)
            alone.learn(told[-1])
    assert len(told) == 3 * 12
    for name, values in alone.get_arrays().items():
        np.testing.assert_array_equal(values, learner.get_arrays()[name])
