# SPDX-License-Identifier: Apache-2.0
"""Controllers that decide by a network: what they compute, what they remember, and what they refuse."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest

from speckv.errors import CheckpointError, SchemaError
from speckv.observation import SCHEMA
from speckv.replay import replay_controller
from speckv.runtime import MlpPolicy, PolicyController
from speckv.runtime.learned import LstmController, LstmPolicy
from speckv.types import BatchMemory, Controller, FloatArray
from tests.fakes_traces import compile_both, make_traces, random_traces


def random_policy(seed: int = 0, gammas: tuple[int, ...] = tuple(range(17))) -> MlpPolicy:
    rng = np.random.default_rng(seed)
    sizes = [SCHEMA.size, 64, 64, len(gammas)]
    return MlpPolicy(
        name="random",
        gammas=gammas,
        mean=rng.random(SCHEMA.size).astype(np.float32),
        std=(0.1 + rng.random(SCHEMA.size)).astype(np.float32),
        weights=tuple((rng.normal(size=(b, a)) / np.sqrt(a)).astype(np.float32) for a, b in itertools.pairwise(sizes)),
        biases=tuple(rng.normal(size=b).astype(np.float32) for b in sizes[1:]),
    )


def random_rows(count: int, seed: int = 0) -> FloatArray:
    rng = np.random.default_rng(seed)
    return (SCHEMA.low + rng.random((count, SCHEMA.size)) * (SCHEMA.high - SCHEMA.low)).astype(np.float32)


def reference(policy: MlpPolicy, rows: FloatArray) -> np.ndarray:
    """The same network in float64, normalisation and all, written out."""
    values = (rows.astype(np.float64) - policy.mean) / policy.std
    for weight, bias in zip(policy.weights[:-1], policy.biases[:-1], strict=True):
        values = np.tanh(values @ weight.T.astype(np.float64) + bias)
    return values @ policy.weights[-1].T.astype(np.float64) + policy.biases[-1]


def test_folding_the_normalisation_changes_nothing() -> None:
    policy, rows = random_policy(), random_rows(10_000)
    np.testing.assert_allclose(PolicyController(policy).scores(rows), reference(policy, rows), atol=2e-5)


def test_alone_or_in_a_batch_it_decides_alike() -> None:
    controller, rows = PolicyController(random_policy()), random_rows(2000)
    assert isinstance(controller, Controller)
    top_two = np.sort(controller.scores(rows), axis=1)[:, -2:]
    clear = top_two[:, 1] - top_two[:, 0] > 1e-5
    alone = np.array([controller.act(row) for row in rows])
    np.testing.assert_array_equal(alone[clear], controller.act_batch(rows)[clear])
    assert clear.mean() > 0.999


def test_outputs_stand_for_the_gammas_of_the_card() -> None:
    policy = random_policy(gammas=(0, 2, 8))
    controller = PolicyController(policy)
    rows = random_rows(50)
    chosen = np.array([0, 2, 8])[reference(policy, rows).argmax(axis=1)]
    np.testing.assert_array_equal(controller.act_batch(rows), chosen)
    assert [controller.act(row) for row in rows] == chosen.tolist()


def test_ties_go_to_the_lowest_index() -> None:
    policy = random_policy()
    flat = replace(
        policy,
        weights=(*policy.weights[:-1], np.zeros_like(policy.weights[-1])),
        biases=(*policy.biases[:-1], np.array([0.0] * 3 + [1.0, 1.0] + [0.0] * 12, np.float32)),
    )
    controller = PolicyController(flat)
    assert controller.act(random_rows(1)[0]) == 3
    assert controller.act_batch(random_rows(4)).tolist() == [3, 3, 3, 3]


def test_a_decision_takes_microseconds() -> None:
    """The promise is 20 us on a quiet machine; the best of 2,000 is compared, with a factor 4 for slow ones."""
    controller, rows = PolicyController(random_policy()), random_rows(2000)
    best = np.inf
    for row in rows:
        start = time.perf_counter()
        controller.act(row)
        best = min(best, time.perf_counter() - start)
    assert best < 80e-6


@pytest.mark.parametrize(
    ("observation", "message"),
    [(np.zeros(3, np.float32), "17 observation fields"), (np.full(SCHEMA.size, np.nan, np.float32), "NaN")],
)
def test_a_malformed_observation_is_refused(observation: FloatArray, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        PolicyController(random_policy()).act(observation)


def test_a_malformed_batch_is_refused() -> None:
    with pytest.raises(SchemaError, match="rows, 17"):
        PolicyController(random_policy()).act_batch(np.zeros((2, 3), np.float32))
    with pytest.raises(SchemaError, match="NaN"):
        PolicyController(random_policy()).act_batch(np.full((2, SCHEMA.size), np.nan, np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": np.zeros(SCHEMA.size, np.float32)}, "positive deviations"),
        ({"mean": np.zeros(3, np.float32)}, "normalisation means"),
        ({"biases": (np.full(64, np.nan, np.float32), *random_policy().biases[1:])}, "finite weights"),
        ({"weights": (), "biases": ()}, "Expected layers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        replace(random_policy(), **change)  # type: ignore[arg-type]


# -- with a memory --------------------------------------------------------------------------------------------------

UNITS = 8


def random_lstm(seed: int = 0) -> LstmPolicy:
    rng = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 1.0) -> FloatArray:
        return (scale * rng.normal(size=shape)).astype(np.float32)

    return LstmPolicy(
        name="remembers",
        gammas=tuple(range(17)),
        mean=rng.random(SCHEMA.size).astype(np.float32),
        std=(0.1 + rng.random(SCHEMA.size)).astype(np.float32),
        input_weight=draw(4 * UNITS, SCHEMA.size, scale=0.25),
        state_weight=draw(4 * UNITS, UNITS),
        gate_bias=draw(4 * UNITS),
        weights=(draw(12, UNITS), draw(17, 12)),
        biases=(draw(12, scale=0.1), draw(17, scale=0.1)),
    )


def lstm_reference(policy: LstmPolicy, rows: np.ndarray) -> np.ndarray:
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
    np.testing.assert_allclose(scores, lstm_reference(policy, rows), atol=1e-4)


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


def test_wrong_observations_are_refused() -> None:
    controller = LstmController(random_lstm())
    with pytest.raises(SchemaError, match=r"shape \(1, 17\), got \(1, 3\)"):
        controller.act(np.zeros(3, np.float32))
    with pytest.raises(SchemaError, match=r"shape \(1, 17\), got \(2, 17\)"):
        controller.act_batch(random_rows(2))
    with pytest.raises(SchemaError, match="NaN"):
        controller.act(np.full(SCHEMA.size, np.nan, np.float32))


def test_lstm_arrays_that_do_not_fit_are_refused() -> None:
    policy = random_lstm()
    with pytest.raises(CheckpointError, match="Expected arrays of shapes"):
        replace(policy, gate_bias=np.zeros(3, np.float32))
    with pytest.raises(CheckpointError, match="diverged"):
        replace(policy, state_weight=np.full((4 * UNITS, UNITS), np.nan, np.float32))
