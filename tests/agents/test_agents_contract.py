# SPDX-License-Identifier: Apache-2.0
"""What every agent that needs no environment promises: the same alone and among others, on the past alone, on disk."""

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speckv.agents.bandits.base import Bandit
from speckv.agents.registry import AGENTS, TrainingData, agent_settings, make_controller
from speckv.errors import CheckpointError
from speckv.observation import SCHEMA, STOPPING_SCHEMA
from speckv.replay import StepLog, replay_controller, replay_stream
from speckv.runtime.policy import load_controller
from speckv.runtime.storage import CARD, RUN_POLICY, WEIGHTS
from speckv.traces import TraceSequence, TraceSet, accepted_lengths
from speckv.types import BatchMemory, Controller, OnlineLearner, StoppingController
from tests.fakes_policies import store
from tests.fakes_traces import compile_both, make_cost_table, make_sequence, make_traces, random_traces

NAMES = sorted(name for name, agent in AGENTS.items() if not agent.in_environment)
OPTIONS: dict[str, dict[str, object]] = {
    "fixed": {"gamma": 3},
    "speckv_mlp": {"epochs": 2},
    "speckv_mlp_cost": {"epochs": 2},
    "neural_linear": {"epochs": 2, "rounds": 1, "hidden": [8]},
    "survival": {"epochs": 2, "rounds": 1, "hidden": [8]},
    "survival_stopping": {"epochs": 2, "rounds": 1, "hidden": [8]},
    # Random recordings are short: everything that moves has to move at once.
    "sglang_ema": {"warmup": 2, "interval": 1},
}


@cache
def _made(name: str) -> tuple[object, Controller]:
    _, settings = agent_settings({"name": name, **OPTIONS.get(name, {})})
    train = random_traces(num_prompts=8, seed=5).select(split="train")
    return settings, make_controller(name, settings, TrainingData(train=train, cost=make_cost_table(), seed=0))


def make(name: str) -> tuple[object, Controller]:
    """Settings and a controller, which is trained once and copied for each caller."""
    return copy.deepcopy(_made(name))


@pytest.fixture(scope="module", params=NAMES)
def agent(request: pytest.FixtureRequest) -> tuple[str, object, Controller]:
    return (request.param, *make(request.param))


@pytest.mark.slow
def test_it_answers_the_protocol(agent: tuple[str, object, Controller]) -> None:
    _, _, controller = agent
    assert isinstance(controller, Controller)
    rng = np.random.default_rng(0)
    rows = rng.uniform(STOPPING_SCHEMA.low, STOPPING_SCHEMA.high, (6, STOPPING_SCHEMA.size)).astype(np.float32)
    controller.reset()
    if isinstance(controller, BatchMemory):
        controller.start(6)
    gammas = controller.act_batch(rows[:, : SCHEMA.size])
    assert gammas.shape == (6,)
    assert ((gammas >= 0) & (gammas <= 16)).all()
    if isinstance(controller, StoppingController):
        assert controller.go_on_batch(rows).dtype == np.bool_


def test_it_decides_alone_as_among_others(agent: tuple[str, object, Controller]) -> None:
    _, _, controller = agent
    if isinstance(controller, OnlineLearner):
        pytest.skip("an online learner meets requests one after the other")
    traces = random_traces(num_prompts=5, seed=9)
    together = replay_controller(controller, *compile_both(traces))
    for row, sequence in enumerate(traces.sequences):
        alone = replay_controller(controller, *compile_both(make_traces([sequence], max_new_tokens=40)))
        assert alone.gamma_counts[0].tolist() == together.gamma_counts[row].tolist()
        assert alone.seconds[0] == pytest.approx(together.seconds[row])


def spliced(first: TraceSequence, second: TraceSequence, at: int) -> TraceSequence:
    """A recording that equals `first` up to a position and `second` from there on."""

    def join(name: str) -> np.ndarray:
        return np.concatenate([getattr(first, name)[:at], getattr(second, name)[at:]])

    names = ("tokens", "target_signals", "draft_tokens", "draft_signals", "accept_prob", "eos_stop")
    joined: dict[str, Any] = {name: join(name) for name in names}
    kept, new = first.rollout_start < at, second.rollout_start >= at
    joined |= {
        name: np.concatenate([getattr(first, name)[kept], getattr(second, name)[new]])
        for name in ("rollout_start", "rollout_tokens", "rollout_signals")
    }
    matches = joined["draft_tokens"] == joined["tokens"]
    return replace(first, **joined, accepted_length=accepted_lengths(matches))


def replayed(folder: Path, sequence: TraceSequence, length: int) -> StepLog:
    """What a controller fresh from the disk does with one recording."""
    controller = load_controller(folder)
    replay = replay_stream if isinstance(controller, OnlineLearner) else replay_controller
    record = replay(controller, *compile_both(one(sequence, length)), log=True)
    assert record.log is not None
    return record.log


@pytest.mark.slow
def test_it_knows_nothing_of_what_is_still_to_come(agent: tuple[str, object, Controller], tmp_path: Path) -> None:
    store(tmp_path, agent[2])
    rng = np.random.default_rng(3)
    length, at, decisions = 80, 70, 0
    for number in range(3):
        first, second = (
            replace(full_length(rng, length), prompt_id=f"p{number}", compression="fp16") for _ in range(2)
        )
        other = spliced(first, second, at)
        logs = [replayed(tmp_path, sequence, length) for sequence in (first, other)]
        # A step that begins before this can see nothing behind the splice, however deep it drafts.
        seen = [log.position + 16 < at for log in logs]
        for name in ("position", "gamma", "num_drafted"):
            before, after = (getattr(log, name)[mask].tolist() for log, mask in zip(logs, seen, strict=True))
            assert before == after
        decisions += int(seen[0].sum())
    assert decisions > 10


def full_length(rng: np.random.Generator, length: int) -> TraceSequence:
    return make_sequence(rng.random(length) < rng.uniform(0.4, 0.95), seed=int(rng.integers(2**31)))


def one(sequence: TraceSequence, length: int) -> TraceSet:
    return make_traces([sequence], max_new_tokens=length)


def test_it_survives_the_disk(agent: tuple[str, object, Controller], tmp_path: Path) -> None:
    controller = agent[2]
    store(tmp_path, controller)
    loaded = load_controller(tmp_path)
    assert loaded.name == controller.name
    if isinstance(controller, Bandit):
        assert isinstance(loaded, Bandit)
        for key, values in controller.get_arrays().items():
            np.testing.assert_array_equal(loaded.get_arrays()[key], values)
        controller.reseed(controller.seed)  # other tests have drawn from it since it was made
        both = compile_both(random_traces(num_prompts=6, seed=2))
        mine, theirs = (replay_stream(copy.deepcopy(c), *both) for c in (controller, loaded))
        assert mine.gamma_counts.tolist() == theirs.gamma_counts.tolist()
        return
    compiled, cost = compile_both(random_traces(num_prompts=6, seed=2))
    mine, theirs = replay_controller(controller, compiled, cost), replay_controller(loaded, compiled, cost)
    assert mine.gamma_counts.tolist() == theirs.gamma_counts.tolist()
    assert load_controller(tmp_path, name="mine").name == "mine"


def test_damaged_agents_are_refused(tmp_path: Path) -> None:
    store(tmp_path, make("goodput")[1])
    folder = tmp_path / RUN_POLICY
    card = (folder / CARD).read_text()
    for changed, message in (
        ("{", "not readable JSON"),
        (card.replace('"format_version": 2', '"format_version": 9'), "version 2, got speckv-policy version 9"),
        (card.replace('"goodput"', '"goodpu"'), "got 'goodpu'"),
        (card.replace('"gamma_max": 16', '"gamma_max": 99'), "from 1 to 16"),
    ):
        (folder / CARD).write_text(changed)
        with pytest.raises(CheckpointError, match=message):
            load_controller(tmp_path)
    (folder / CARD).write_text(card)
    (folder / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not the file that its card describes"):
        load_controller(tmp_path)
