# SPDX-License-Identifier: Apache-2.0
"""An exported policy with a memory: its state, its files, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from speckv.errors import CheckpointError, SchemaError
from speckv.observation import SCHEMA
from speckv.replay import replay_controller
from speckv.runtime.recurrent import LstmController, LstmPolicy
from speckv.runtime.stored import load_controller
from speckv.types import BatchMemory, Controller, FloatArray
from tests.fakes_traces import compile_both, make_traces, random_traces
from tests.speckv.test_runtime_policy import random_rows

UNITS = 8


def random_lstm(seed: int = 0) -> LstmPolicy:
    rng = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 1.0) -> FloatArray:
        return (scale * rng.normal(size=shape)).astype(np.float32)

    return LstmPolicy(
        name="remembers",
        schema=SCHEMA,
        gammas=tuple(range(17)),
        mean=rng.random(SCHEMA.size).astype(np.float32),
        std=(0.1 + rng.random(SCHEMA.size)).astype(np.float32),
        input_weight=draw(4 * UNITS, SCHEMA.size, scale=0.25),
        state_weight=draw(4 * UNITS, UNITS),
        gate_bias=draw(4 * UNITS),
        weights=(draw(12, UNITS), draw(17, 12)),
        biases=(draw(12, scale=0.1), draw(17, scale=0.1)),
        provenance={"seed": seed},
    )


def reference(policy: LstmPolicy, rows: np.ndarray) -> np.ndarray:
    """The same cell in float64 along one sequence, written out from its definition."""
    hidden, cell, scores = np.zeros(UNITS), np.zeros(UNITS), []
    for row in (rows.astype(np.float64) - policy.mean) / policy.std:
        gates = policy.input_weight @ row + policy.state_weight @ hidden + policy.gate_bias
        i, f, g, o = gates.reshape(4, UNITS)
        i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
        cell = f * cell + i * np.tanh(g)
        hidden = o * np.tanh(cell)
        values = np.tanh(policy.weights[0] @ hidden + policy.biases[0])
        scores.append(policy.weights[1] @ values + policy.biases[1])
    return np.array(scores)


def test_scores_are_those_of_the_definition_all_along_a_sequence() -> None:
    policy, rows = random_lstm(), random_rows(100)
    controller = LstmController(policy)
    scores = np.concatenate([controller.scores(row[np.newaxis]) for row in rows])
    np.testing.assert_allclose(scores, reference(policy, rows), atol=1e-4)


def test_it_remembers_and_forgets() -> None:
    controller, rows = LstmController(random_lstm()), random_rows(30)
    assert isinstance(controller, Controller)
    assert isinstance(controller, BatchMemory)
    first = [controller.act(row) for row in rows]
    on = [controller.act(row) for row in rows]
    controller.reset()
    assert [controller.act(row) for row in rows] == first != on


def test_each_request_has_a_state_of_its_own() -> None:
    controller = LstmController(random_lstm())
    traces = random_traces(num_prompts=6, seed=4)
    together = replay_controller(controller, *compile_both(traces))
    assert len(np.flatnonzero(together.gamma_counts.sum(axis=0))) > 2
    for row, sequence in enumerate(traces.sequences):
        alone = replay_controller(controller, *compile_both(make_traces([sequence], max_new_tokens=40)))
        assert alone.gamma_counts[0].tolist() == together.gamma_counts[row].tolist()


def test_it_survives_the_disk(tmp_path: Path) -> None:
    policy, rows = random_lstm(), random_rows(50)
    policy.save(tmp_path / "policy")
    loaded = load_controller(tmp_path, name="mine")
    assert isinstance(loaded, LstmController)
    assert (loaded.name, loaded.policy.name, loaded.policy.provenance) == ("mine", "remembers", {"seed": 0})
    again = LstmController.load(tmp_path / "policy")
    expected = LstmController(policy)
    assert [again.act(row) for row in rows] == [expected.act(row) for row in rows]


def test_wrong_observations_are_refused() -> None:
    controller = LstmController(random_lstm())
    with pytest.raises(SchemaError, match=r"shape \(1, 17\), got \(1, 3\)"):
        controller.act(np.zeros(3, np.float32))
    with pytest.raises(SchemaError, match=r"shape \(1, 17\), got \(2, 17\)"):
        controller.act_batch(random_rows(2))
    with pytest.raises(SchemaError, match="NaN"):
        controller.act(np.full(SCHEMA.size, np.nan, np.float32))


def test_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    policy = random_lstm()
    with pytest.raises(CheckpointError, match="Expected arrays of shapes"):
        replace(policy, gate_bias=np.zeros(3, np.float32))
    with pytest.raises(CheckpointError, match="diverged"):
        replace(policy, state_weight=np.full((4 * UNITS, UNITS), np.nan, np.float32))
    policy.save(tmp_path)
    (tmp_path / "policy.json").write_text((tmp_path / "policy.json").read_text().replace('version": 1', 'version": 9'))
    with pytest.raises(CheckpointError, match="version 1, got 9"):
        load_controller(tmp_path)
