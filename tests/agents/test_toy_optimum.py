# SPDX-License-Identifier: Apache-2.0
"""Learners on recordings whose best gamma is known: 4 at one compression, 2 at the other.

At fp16 the draft is right four times and wrong once, over and over; at nf4 it is right twice and wrong once. Whoever
drafts just the right tokens emits the target's own in place of every wrong one and stays in step, and nothing at all
(`clairvoyant`) is faster. The draft's confidence alone tells the last right token of a row: of the rules that TapOut
chooses among, one stops there, and the others draft on.

Only learners draw, from fixed seeds, so a test that passes passes always; all of them also pass with seeds 1 to 5.
Options make them explore enough in so little data, and no more than that: theory's bonuses are too wide for 60 short
prompts, LinUCB's default one too narrow.
"""

from dataclasses import replace

import numpy as np
import pytest

from speckv.agents.registry import AGENTS, TrainingData, agent_settings, make_controller
from speckv.evaluation.metrics import Grid
from speckv.evaluation.replays import controller_sums
from speckv.replay import clairvoyant, replay_controller, replay_fixed
from speckv.runtime import Policy
from speckv.runtime.shipped import with_cost_table
from speckv.traces import TraceSequence, TraceSet
from speckv.types import Abstainer
from tests.fakes_traces import compile_both, make_cost_table, make_sequence, make_traces

TRAIN, TEST = 60, 6
TABLE = make_cost_table(
    entries={
        name: replace(make_cost_table().entry(name), draft_s=(0.5, 1.5), verify_s=verify_s)
        for name, verify_s in (("fp16", (8.0, 9.0, 12.0)), ("nf4", (4.0, 6.0, 12.0)))
    }
)
"""The best gamma is also the best one for a learner that has got out of step and knows nothing of it; else there would
be habits that confirm themselves."""
BEST = {"fp16": 4, "nf4": 2}
LENGTH = 61
"""The prefill's token and 60 more: 12 steps of 5, or 20 of 3."""
ARMS: dict[str, object] = {"arms": [2, 4, 12]}
PAIR: dict[str, object] = {"arms": [2, 4]}
QUICK: dict[str, object] = {"hidden": [16], "epochs": 10, "batch_size": 256, "learning_rate": 0.01, "rounds": 2}

LEARNERS: dict[str, tuple[dict[str, object], float]] = {
    "calibrated_stopping": ({"refit_every": 10}, 0.95),
    "exp3spec": (PAIR, 0.95),
    "hazard_thompson": ({}, 0.98),
    "hazard_thompson_discounted": ({}, 0.98),
    "lints": (ARMS, 0.95),
    "linucb": (ARMS | {"width": 1.0}, 0.95),
    "neural_linear": (ARMS | QUICK, 0.95),
    "survival": (QUICK, 0.98),
    "survival_stopping": (QUICK | {"epochs": 4}, 0.98),
    "tapout": ({"width": 0.1}, 0.95),
    "thompson": (PAIR, 0.95),
    "ucb1": (ARMS | {"width": 0.1}, 0.95),
    "ucbspec": (ARMS | {"width": 0.1}, 0.95),
}
"""Agent -> its options, and the least share of the best throughput."""


def in_rows(number: int, compression: str) -> TraceSequence:
    """One recording: rows of right tokens, a wrong one behind each."""
    right = BEST[compression]
    # Position 0 is the prefill's.
    place = np.arange(LENGTH - 1) % (right + 1)
    sequence = make_sequence(
        [1, *(place < right)],
        compression=compression,
        prompt_id=f"p{number}",
        split="train" if number < TRAIN else "test",
        seed=number,
    )
    confidence = np.where(np.append(0, place) == right - 1, 0.5, 0.95)
    entropy, margin = np.full(LENGTH, 0.1), np.full(LENGTH, 0.4)
    signals = np.stack([entropy, confidence, margin], axis=1).astype(np.float32)
    behind = np.broadcast_to(np.array([0.1, 0.95, 0.4], np.float32), sequence.rollout_signals.shape)
    return replace(sequence, draft_signals=signals, rollout_signals=behind)


@pytest.fixture(scope="module")
def traces() -> TraceSet:
    sequences = [in_rows(number, compression) for compression in BEST for number in range(TRAIN + TEST)]
    return make_traces(sequences, max_new_tokens=LENGTH)


def test_the_optimum_is_what_it_is_said_to_be(traces: TraceSet) -> None:
    for compression, gamma in BEST.items():
        compiled, cost = compile_both(traces.select(compressions=[compression]), TABLE)
        bound, best = clairvoyant(compiled, cost), replay_fixed(compiled, cost, gamma)
        np.testing.assert_allclose(best.seconds, bound.seconds, rtol=1e-12)
        others = [replay_fixed(compiled, cost, g).throughput for g in range(17) if g != gamma]
        assert max(others) < 0.97 * best.throughput


def test_every_learner_is_tried() -> None:
    online = {name for name, agent in AGENTS.items() if agent.online}
    assert set(LEARNERS) == online | {"survival", "survival_stopping"}


@pytest.mark.parametrize("name", LEARNERS)
def test_it_learns_the_optimum(name: str, traces: TraceSet) -> None:
    options, least = LEARNERS[name]
    data = TrainingData(train=traces.select(split="train"), cost=TABLE, seed=0)
    controller = make_controller(name, agent_settings({"name": name, **options})[1], data)
    compiled, cost = compile_both(traces.select(split="test"), TABLE)
    sums = controller_sums(controller, compiled, cost)
    bound = Grid.of(compiled).sums("bound", clairvoyant(compiled, cost))
    shares = bound.seconds.sum(axis=0) / sums.seconds.sum(axis=0)
    assert (shares >= least).all(), dict(zip(compiled.compression_names, shares.tolist(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["survival", "survival_stopping"])
def test_where_the_first_drafts_prompt_costs_more_than_is_gained_nothing_is_ever_drafted(
    name: str, traces: TraceSet
) -> None:
    dear = replace(TABLE.entry("nf4"), draft_prompt_s=100.0)
    table = replace(TABLE, entries={**TABLE.entries, "nf4": dear})
    settings = agent_settings({"name": name, **QUICK})[1]
    controller = make_controller(name, settings, TrainingData(train=traces.select(split="train"), cost=table, seed=0))
    assert isinstance(controller, Abstainer)
    assert {c: controller.never_drafts(c) for c in BEST} == {c: c == "nf4" for c in BEST}
    compiled, cost = compile_both(traces.select(split="test", compressions=["nf4"]), table)
    assert not replay_controller(controller, compiled, cost).num_drafted.any()
    sessions = {c: Policy.of(controller).session(max_new_tokens=LENGTH, compression=c) for c in BEST}
    for session in sessions.values():
        session.start(0.1, 0.95)
    assert {c: session.begin_step() > 0 for c, session in sessions.items()} == {c: c != "nf4" for c in BEST}
    # With the times of a clock on which drafting pays, it drafts again.
    elsewhere = with_cost_table(controller, TABLE, tuple(BEST))
    assert isinstance(elsewhere, Abstainer)
    assert not any(map(elsewhere.never_drafts, BEST))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["survival", "survival_stopping"])
def test_the_times_of_a_compression_that_was_not_seen_can_be_given(name: str, traces: TraceSet) -> None:
    settings = agent_settings({"name": name, **QUICK})[1]
    controller = make_controller(name, settings, TrainingData(train=traces.select(split="train"), cost=TABLE, seed=0))
    slow = replace(TABLE.entry("nf4"), verify_s=(4.0, 60.0, 120.0))
    table = replace(TABLE, entries={**TABLE.entries, "int8": replace(slow, compression="int8")})
    moved = with_cost_table(controller, table, (*BEST, "int8"))
    test = traces.select(split="test", compressions=["nf4"])
    as_int8 = replace(test, sequences=tuple(replace(one, compression="int8") for one in test.sequences))
    for recorded, drafts in ((test, True), (as_int8, False)):
        compiled, cost = compile_both(recorded, table)
        assert replay_controller(controller, compiled, cost).num_drafted.any()  # it takes the times of nf4 for int8's
        assert replay_controller(moved, compiled, cost).num_drafted.any() == drafts
