# SPDX-License-Identifier: Apache-2.0
"""Every agent exported: the same decisions after a round trip, in sessions as in replay."""

import copy
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speckv.agents.registry import AGENTS
from speckv.commands.export import main
from speckv.cost import CostTable
from speckv.decoding.batched_generation import control
from speckv.evaluation.replays import compile_pair
from speckv.observation import SCHEMA, STOPPING_SCHEMA
from speckv.replay import replay_controller, replay_stream
from speckv.runtime import Policy, load
from speckv.runtime.policy import load_controller
from speckv.runtime.session import Session
from speckv.runtime.storage import make_script
from speckv.runtime.storage import play as play_vectors
from speckv.traces import TraceSequence, TraceSet, find_traces
from speckv.types import BatchMemory, Controller, OnlineLearner, StepOutcome, StoppingController
from tests.agents.test_agents_contract import make
from tests.fakes_policies import store
from tests.fakes_traces import compile_both, make_cost_table, random_traces

NAMES = sorted(name for name, agent in AGENTS.items() if not agent.in_environment)


@pytest.fixture(scope="module", params=NAMES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Controller, Policy]:
    """A controller as its run folder gives it, and the policy that was exported from the folder."""
    folder = tmp_path_factory.mktemp(request.param)
    made(request.param, folder).save(folder / "mine.speckv")
    return load_controller(folder), load(folder / "mine.speckv")


def decisions(controller: Controller, rows: np.ndarray) -> list[Any]:
    """On observations of requests side by side; a learner takes them one after the other."""
    controller = copy.deepcopy(controller)
    controller.reset()
    if isinstance(controller, BatchMemory):
        controller.start(len(rows))
    made = [controller.act_batch(rows[:, : SCHEMA.size]).tolist()]
    if isinstance(controller, StoppingController):
        made.append(controller.go_on_batch(rows).tolist())
    return made


def test_live_and_exported_agree_on_random_observations(both: tuple[Controller, Policy]) -> None:
    live, policy = both
    rng = np.random.default_rng(1)
    rows = rng.uniform(STOPPING_SCHEMA.low, STOPPING_SCHEMA.high, (1_000, STOPPING_SCHEMA.size)).astype(np.float32)
    assert decisions(live, rows) == decisions(policy.controller, rows)


def test_a_session_decides_as_replay_does(both: tuple[Controller, Policy]) -> None:
    assert_same_steps(*both, random_traces(num_prompts=4, seed=11), make_cost_table())


def test_a_session_decides_as_replay_does_on_test_prompts(both: tuple[Controller, Policy], shipped: TraceSet) -> None:
    assert_same_steps(*both, shipped, CostTable.load("cpu-2core"))


@pytest.mark.parametrize("name", ["cpu-2core", "rtx3090-paper"])
def test_so_does_the_shipped_policy(name: str, shipped: TraceSet) -> None:
    assert_same_steps(load("shipped").controller, load("shipped"), shipped, CostTable.load(name))


@pytest.fixture(scope="module")
def shipped() -> TraceSet:
    """One test prompt of each task, each at one compression."""
    test = TraceSet.load(find_traces("qwen2.5-coder-greedy")).select(split="test")
    first = {sequence.task: sequence.prompt_id for sequence in reversed(test.sequences)}
    chosen = set(zip(first.values(), itertools.cycle(test.compressions), strict=False))
    return replace(test, sequences=tuple(s for s in test.sequences if (s.prompt_id, s.compression) in chosen))


def without_passes(outcome: StepOutcome) -> StepOutcome:
    """A session times whole steps."""
    return replace(outcome, draft_s=0.0, first_draft_s=0.0, verify_s=0.0)


def assert_same_steps(live: Controller, policy: Policy, traces: TraceSet, table: CostTable) -> None:
    """Replays every recording with the controller, and plays it in a session of the policy."""
    policy.warnings.clear()
    for sequence in traces.sequences:
        compiled, cost = compile_pair(replace(traces, sequences=(sequence,)), table)
        controller = copy.deepcopy(live)
        if isinstance(controller, OnlineLearner) and not policy.learns:
            controller.learns = False
        if isinstance(controller, OnlineLearner):
            record = replay_stream(controller, compiled, cost, log=True, shown=without_passes)
        else:
            record = replay_controller(controller, compiled, cost, log=True)
        assert record.log is not None
        ratio = float(table.cost_ratio(sequence.compression))
        budget = traces.metadata.max_new_tokens
        played = play(copy.deepcopy(policy), sequence, budget, ratio, record.log.seconds.tolist())
        assert played == list(zip(record.log.num_drafted.tolist(), record.log.num_accepted.tolist(), strict=True))
    assert not policy.warnings


def play(
    policy: Policy, sequence: TraceSequence, budget: int, cost_ratio: float, seconds: list[float]
) -> list[tuple[int, int]]:
    """Drafted and accepted tokens of each step, the recording being the decode loop."""
    session = policy.session(
        max_new_tokens=budget,
        compression=sequence.compression,
        cost_ratio=cost_ratio,
    )
    session.start(*sequence.target_signals[0, :2].tolist())
    position = 1
    steps: list[tuple[int, int]] = []
    while position < len(sequence.tokens):
        gamma, drafted = session.begin_step(), 0
        _, signals = sequence.draft_from(position, 16)
        possible = min(gamma, len(sequence.tokens) - position - 1 if sequence.finish == "length" else gamma)
        possible = min(possible, int(sequence.eos_stop[position]))
        while drafted < possible:
            more = session.go_on(*signals[drafted].tolist())
            drafted += 1
            if not more:
                break
        accepted = min(drafted, int(sequence.accepted_length[position]))
        emitted = min(accepted + 1, len(sequence.tokens) - position)
        position += emitted
        newest = sequence.target_signals[position - 1, :2].tolist()
        session.end_step(accepted, *newest, num_emitted=emitted, seconds=seconds[len(steps)])
        steps.append((drafted, accepted))
    return steps


def test_a_frozen_policy_learns_nothing_in_its_sessions_or_anywhere(both: tuple[Controller, Policy]) -> None:
    live, _ = both
    if not isinstance(live, OnlineLearner):
        pytest.skip("it never learns")
    frozen, sessions = Policy.of(live, learns=False, cost_ratio={"fp16": 0.3, "nf4": 0.5}), list[Session]()

    def opened(**options: Any) -> Session:
        sessions.append(frozen.session(**options))
        return sessions[-1]

    play_vectors(make_script(("fp16", "nf4"), depth=16), opened)
    replayed = copy.deepcopy(frozen.controller)
    replay_stream(replayed, *compile_both(random_traces(num_prompts=4, seed=11)))
    wanted = known(live)
    for controller in (*(session._controller for session in sessions), replayed):
        for name, values in known(controller).items():
            np.testing.assert_array_equal(values, wanted[name])
    replay_stream(live_one := copy.deepcopy(live), *compile_both(random_traces(num_prompts=4, seed=11)))
    assert any((values != wanted[name]).any() for name, values in known(live_one).items())


def known(learner: Any) -> dict[str, np.ndarray]:
    """A copy of what it has learned."""
    return {name: np.array(values) for name, values in learner.get_arrays().items()}


def made(name: str, folder: Path) -> Policy:
    """An agent's run folder, and its policy."""
    store(folder, make(name)[1])
    return Policy.of(load_controller(folder), cost_ratio={"fp16": 0.3, "nf4": 0.5})


def test_an_exported_folder_is_exported_again(tmp_path: Path) -> None:
    random_traces(num_prompts=8, seed=5).save(tmp_path / "traces.parquet")
    make_cost_table().save(tmp_path / "cost.json")
    known = ["--traces", str(tmp_path / "traces.parquet"), "--cost", str(tmp_path / "cost.json")]
    made("linucb", tmp_path / "run")
    folders = [tmp_path / "run", *(tmp_path / f"{number}.speckv" for number in range(3))]
    for source, to, options in zip(folders[:-1], folders[1:], ([], ["--frozen"], []), strict=True):
        main([str(source), "--out", str(to), *known, *options])
    first, frozen, again = (load(folder) for folder in folders[1:])
    assert (first.learns, frozen.learns, again.learns) == (True, False, False)
    assert not load_controller(folders[-1]).learns  # type: ignore[attr-defined]
    mine, theirs = (policy.controller.state().arrays for policy in (first, again))  # type: ignore[attr-defined]
    for name, values in mine.items():
        np.testing.assert_array_equal(values, theirs[name])


def test_frozen_learners_decode_side_by_side_each_with_a_memory_of_its_own(tmp_path: Path) -> None:
    tapout = copy.deepcopy(made("tapout", tmp_path).controller)
    tapout.learns = False  # type: ignore[attr-defined]
    deciders = control(tapout, max_running=2)
    deciders.begin([0, 1])
    rows = np.random.default_rng(0).random((2, SCHEMA.size)).astype(np.float32)
    deciders.act([0, 1], rows)
    assert tapout._last is None  # type: ignore[attr-defined]


def test_running_an_exported_agent_needs_no_pyarrow_and_no_torch(tmp_path: Path) -> None:
    made("survival_stopping", tmp_path / "run").save(tmp_path / "mine.speckv")
    program = (
        "import sys; sys.modules['pyarrow'] = sys.modules['torch'] = None; from speckv import runtime; "
        "s = runtime.load(sys.argv[1]).session(max_new_tokens=9); s.start(0.1, 0.9); s.begin_step()"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "mine.speckv")], check=True)
