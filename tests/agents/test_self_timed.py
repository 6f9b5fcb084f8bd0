# SPDX-License-Identifier: Apache-2.0
"""Controllers on learned times: level with the same controller that has the right times from the start."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from speckv.agents.registry import TrainingData, default_settings, make_controller
from speckv.agents.self_timed import SelfTimed
from speckv.cost import CostTable
from speckv.cost.times import StepTimes
from speckv.evaluation.replays import compile_pair
from speckv.replay import replay_controller, replay_stream
from speckv.runtime import Policy, load
from speckv.traces import TraceSet, find_traces
from speckv.types import StepOutcome
from tests.fakes_traces import make_cost_table, random_traces


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
    told = fitted.inner.with_times(StepTimes.of(cost, [compression]))  # type: ignore[attr-defined]
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
