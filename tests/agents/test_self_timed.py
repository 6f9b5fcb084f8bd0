# SPDX-License-Identifier: Apache-2.0
"""Controllers on learned times: level with the same controller that has the right times from the start."""

import copy
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.clocks import (
    FLAT,
    LINEAR,
    NEVER_PAYS,
    Load,
    Shown,
    as_it_is,
    coarse,
    consumer,
    idle,
    noisy,
    stream_s,
    told,
)
from speckv.agents.registry import TrainingData, default_settings, make_controller
from speckv.agents.self_timed import SelfTimed, untold
from speckv.cost import CostTable
from speckv.cost.live import LiveTimes, TimedStep, TimesPrior
from speckv.cost.times import StepTimes
from speckv.errors import ConfigError
from speckv.evaluation.replays import compile_pair, controller_sums
from speckv.observation import SCHEMA
from speckv.replay import replay_controller, replay_fixed, replay_stream
from speckv.runtime import Policy, PolicyController, load
from speckv.traces import TraceSet, find_traces
from speckv.types import FloatArray, StepOutcome
from tests.fakes_traces import make_cost_table, random_traces
from tests.speckv.test_runtime_learned import random_policy


@pytest.fixture(scope="module")
def recorded() -> TraceSet:
    return TraceSet.load(find_traces("qwen2.5-coder-greedy"))


@pytest.fixture(scope="module")
def fitted(recorded: TraceSet) -> SelfTimed:
    """With a smaller network than the default, fitted once."""
    data = TrainingData(train=recorded.select(split="train"), cost=CostTable.load("cpu-2core"), seed=0)
    made = make_controller("self_timed", default_settings("self_timed", hidden=[16], rounds=1, epochs=6), data)
    assert isinstance(made, SelfTimed)
    return made


def without_passes(outcome: StepOutcome) -> StepOutcome:
    return replace(outcome, draft_s=0.0, first_draft_s=0.0, verify_s=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "compression"), [("cpu-2core", "int8"), ("cpu-2core", "nf4"), ("rtx3090-paper", "nf4")]
)
def test_it_is_level_with_the_right_times(fitted: SelfTimed, recorded: TraceSet, table: str, compression: str) -> None:
    cost = CostTable.load(table)
    test = recorded.select(split="test", compressions=[compression])
    compiled = compile_pair(test, cost)
    told = fitted.inner.with_times(StepTimes.of(cost, [compression]))
    expected = float(replay_controller(told, *compiled).seconds.sum())
    order = np.random.default_rng(0).permutation(len(test.sequences)).tolist()
    for shown in (lambda outcome: outcome, without_passes):
        seconds = float(replay_stream(copy.deepcopy(fitted), *compiled, order=order, shown=shown).seconds.sum())
        assert expected / seconds > 0.99


@pytest.mark.parametrize("name", ["self_timed", "self_timed_online"])
def test_no_cost_table_is_used(name: str) -> None:
    train = random_traces(num_prompts=10, seed=3).select(split="train")
    settings = {"hidden": [4], "rounds": 1, "epochs": 1} if name == "self_timed" else {}
    tables = [make_cost_table(), make_cost_table(controller_s=0.5)]
    tables[1] = replace(
        tables[1], entries={c: replace(e, draft_s=[9.0 * s for s in e.draft_s]) for c, e in tables[1].entries.items()}
    )
    made = [
        make_controller(name, default_settings(name, **settings), TrainingData(train=train, cost=table, seed=0))
        for table in tables
    ]
    np.testing.assert_array_equal(made[0].get_arrays()["step_s"], made[1].get_arrays()["step_s"])  # type: ignore[attr-defined]
    np.testing.assert_array_equal(made[0].times.verify_s[:, 0], 1.0)  # type: ignore[attr-defined]


def test_what_was_learned_is_the_prior_of_the_next_session(tmp_path: Path) -> None:
    traces, table = random_traces(num_prompts=10, seed=3), make_cost_table()
    data = TrainingData(train=traces.select(split="train"), cost=table, seed=0)
    controller = make_controller("self_timed_online", default_settings("self_timed_online"), data)
    replay_stream(controller, *compile_pair(traces, table))
    Policy.of(controller).save(tmp_path / "mine.speckv")
    loaded = load(tmp_path / "mine.speckv").controller
    assert isinstance(controller, SelfTimed)
    assert isinstance(loaded, SelfTimed)
    for before, after in zip(controller.times.verify_s, loaded.times.verify_s, strict=True):
        np.testing.assert_allclose(after, before / before[0], rtol=0.02)


def test_requests_may_interleave() -> None:
    traces = random_traces(num_prompts=4, seed=3)
    data = TrainingData(train=traces.select(split="train"), cost=make_cost_table(), seed=0)
    controller = make_controller("self_timed_online", default_settings("self_timed_online"), data)
    assert isinstance(controller, SelfTimed)
    controller.reset()
    controller._request.lag = 5
    saved = controller.save_request()
    controller.reset()
    assert controller._request.lag == 0
    controller.load_request(saved)
    assert controller._request.lag == 5


@pytest.fixture(scope="module")
def shipped() -> SelfTimed:
    controller = load("shipped").controller
    assert isinstance(controller, SelfTimed)
    return controller


@pytest.fixture(scope="module")
def few(recorded: TraceSet) -> TraceSet:
    """Every third test prompt."""
    test = recorded.select(split="test")
    return test.select(prompt_ids=list(test.prompt_ids)[::3])


MODES: dict[str, Callable[[int], Shown]] = {
    "work of the caller inside the step": lambda seed: consumer(0.2),  # noqa: ARG005
    "load in turns": lambda seed: Load(),  # noqa: ARG005
    "pauses": idle,
    "noise": lambda seed: noisy(seed, 0.3, 0.0),
    "a coarse clock": lambda seed: coarse(0.15, seed),  # a draft pass takes 0.09 s
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("by_passes", [True, False])
def test_distorted_times_cost_little(shipped: SelfTimed, few: TraceSet, mode: str, by_passes: bool) -> None:
    table, compression = CostTable.load("cpu-2core"), "int8"
    pair = compile_pair(few.select(compressions=[compression]), table)
    order = np.random.default_rng(1).permutation(len(pair[0])).tolist()
    right = stream_s(told(shipped, table, compression), pair, order)
    distort = MODES[mode](0)
    hide = as_it_is if by_passes else without_passes
    mine = stream_s(copy.deepcopy(shipped), pair, order, lambda outcome: hide(distort(outcome)))
    assert right / mine > 0.97


@pytest.mark.parametrize(("first", "second"), [(FLAT, LINEAR), (NEVER_PAYS, FLAT), (FLAT, NEVER_PAYS)])
def test_a_change_of_the_machine_is_followed(
    shipped: SelfTimed, few: TraceSet, first: CostTable, second: CostTable
) -> None:
    traces = few.select(compressions=["fp16"])
    half = len(traces.sequences) // 2
    controller = copy.deepcopy(shipped)
    stream_s(controller, compile_pair(traces, first), list(range(half)))
    pair = compile_pair(traces, second)
    controller.reset()
    stream_s(controller, pair, [half])  # some 30 steps
    rest = list(range(half + 1, len(traces.sequences)))
    assert stream_s(told(shipped, second, "fp16"), pair, rest) / stream_s(controller, pair, rest) > 0.98


def test_where_drafting_never_pays_it_stays_level_with_plain_decoding(shipped: SelfTimed, few: TraceSet) -> None:
    pair = compile_pair(few.select(compressions=["nf4"]), NEVER_PAYS)
    order = list(range(len(pair[0])))
    plain = replay_fixed(*pair, 0).seconds
    mine = replay_stream(copy.deepcopy(shipped), *pair, order=order).seconds
    windows = [plain[k : k + 10].sum() / mine[k : k + 10].sum() for k in range(len(order) - 9)]
    assert min(windows) > 0.99


def test_sessions_share_what_they_learn_and_it_can_be_stored(tmp_path: Path) -> None:
    policy = load("shipped")
    clock = itertools.count(0.0, 0.1)

    def decode(using: Policy) -> list[int]:
        session = using.session(max_new_tokens=200, compression="nf4", clock=lambda: next(clock))
        session.start(0.5, 0.9)
        drafted = []
        for _ in range(12):
            more, number = session.begin_step() > 0, 0
            while more:
                more, number = session.go_on(0.1, 0.97, 0.95), number + 1
            session.end_step(number, 0.2, 0.95)
            drafted.append(number)
        return drafted

    # Each call of the clock is a tenth of a second later: a draft pass takes as long as a target pass.
    assert decode(policy)[:3] != [0, 0, 0]
    assert decode(policy)[4:] == [0] * 8
    policy.save(tmp_path / "mine.speckv")
    # It begins with the stored shape of the times, and tries what it must.
    assert sum(decode(load(tmp_path / "mine.speckv"))) <= sum(decode(load("shipped")))


def test_threads_take_turns() -> None:
    policy = load("shipped")
    steps = 200

    def decode(number: int) -> None:
        session = policy.session(max_new_tokens=10_000, compression="fp16")
        session.start(0.5, 0.9)
        for step in range(steps):
            more, drafted = session.begin_step() > 0, 0
            while more:
                more, drafted = session.go_on(0.1, 0.97, 0.95), drafted + 1
            session.end_step(min(drafted, (step + number) % 3), 0.2, 0.95)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decode, range(4)))
    assert not policy.warnings
    assert isinstance(policy.controller, SelfTimed)
    live = policy.controller.times.live[0]
    assert live.plain.ever + live.drafts.ever <= 4 * steps


def test_untold_controllers_learn_and_others_stay_as_they_are(recorded: TraceSet) -> None:
    data = TrainingData(train=recorded.select(split="train"), cost=CostTable.load("cpu-2core"), seed=0)
    goodput = make_controller("goodput", default_settings("goodput"), data)
    learning = untold(goodput, data.train.compressions)
    assert type(learning) is SelfTimed
    assert learning.name == "goodput"
    assert untold(learning, data.train.compressions) is learning
    svip = make_controller("svip", default_settings("svip"), data)
    assert untold(svip, data.train.compressions) is svip
    per_request = make_controller("per_request", default_settings("per_request"), data)
    with pytest.raises(ConfigError, match=r"cost\.known=true"):
        untold(per_request, data.train.compressions)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["goodput", "hazard_thompson", "calibrated_stopping", "survival", "speckv_mlp_cost"])
def test_every_controller_that_weighs_time_can_learn_it(name: str, recorded: TraceSet, few: TraceSet) -> None:
    table = CostTable.load("rtx3090-paper")
    pair = compile_pair(few.select(compressions=["nf4"]), table)
    settings = default_settings(name, **({"hidden": [16], "rounds": 1} if name == "survival" else {}))
    seconds = []
    for known in (True, False):
        data = TrainingData(train=recorded.select(split="train"), cost=table, seed=0, told=known)
        controller = make_controller(name, settings, data)
        seconds.append(controller_sums(controller, *pair).seconds.sum())
    assert seconds[0] / seconds[1] > 0.985


def test_a_network_sees_the_learned_ratio() -> None:
    ratio = SCHEMA.index("cost_ratio")
    seen: list[float] = []

    class Watching(PolicyController):
        def act(self, observation: FloatArray) -> int:
            seen.append(float(observation[ratio]))
            return 3

    network = Watching(random_policy())
    controller = untold(network, ["fp16"])
    assert isinstance(controller, SelfTimed)
    observation = np.zeros(SCHEMA.size, np.float32)
    outcome = StepOutcome(
        gamma=3,
        num_drafted=3,
        num_accepted=2,
        num_tested=3,
        num_emitted=3,
        draft_signals=np.full((3, 3), 0.5, np.float32),
        target_entropy=0.1,
        target_confidence=0.9,
        seconds=1.6,
        draft_s=0.6,
        first_draft_s=0.2,
        verify_s=1.0,
    )
    controller.reset()
    for _ in range(6):
        controller.act(observation)
        controller.learn(outcome)
    assert seen[0] == pytest.approx(0.3, abs=0.01)  # the prior
    assert seen[-1] == pytest.approx(0.2, rel=0.1)
    for by in (True, False):
        live = LiveTimes(TimesPrior.flat())
        for drafted in (0, 1, 2, 3, 4, 0, 4, 2) * 3:
            live.observe(
                TimedStep(
                    num_drafted=drafted,
                    seconds=1.0 + 0.1 * drafted,
                    first_draft_s=0.1 if by and drafted else None,
                    more_draft_s=0.1 * (drafted - 1) if by and drafted else None,
                    verify_s=1.0 if by else None,
                )
            )
        assert live.draft_ratio == pytest.approx(0.1, rel=0.1)
