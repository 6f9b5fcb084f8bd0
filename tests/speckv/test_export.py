# SPDX-License-Identifier: Apache-2.0
"""Policies exported from run folders: with what they must know, compiled down with an honest loss, or refused."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from speckv.commands.export import main
from speckv.errors import CheckpointError, ConfigError
from speckv.export import Source, make_policy
from speckv.export.compiled import compile_batches, compile_steps, loss_of
from speckv.export.onnx import write_onnx
from speckv.runtime import Policy, PolicyController, load
from speckv.runtime.constant import AcceptanceTable, ConstantGamma
from speckv.runtime.learned import controller_of
from speckv.traces import TraceSet
from tests.fakes_policies import store
from tests.fakes_traces import make_cost_table, random_traces
from tests.speckv.test_runtime_learned import random_policy


@pytest.fixture(scope="module")
def traces() -> TraceSet:
    return random_traces(num_prompts=24, seed=3)


@pytest.fixture(scope="module")
def folder(traces: TraceSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that knows its recordings and its clock."""
    place = tmp_path_factory.mktemp("run")
    traces.save(place / "traces.parquet")
    make_cost_table().save(place / "cost.json")
    cost = {"name": "mine", "table": str(place / "cost.json")}
    names = {"cost": cost, "traces": {"name": str(place / "traces.parquet")}}
    (place / "run.json").write_text(json.dumps(names))
    store(place, PolicyController(random_policy()))
    return place


def test_a_policy_knows_what_it_was_trained_on(folder: Path, traces: TraceSet) -> None:
    policy = make_policy(Source.find(str(folder)))
    assert policy.trained_on["target"] == traces.metadata.target_id
    assert policy.trained_on["vocab_size"] == traces.metadata.vocab_size
    assert set(policy.compressions) == set(traces.compressions)
    assert set(policy.fallback) == set(traces.compressions)
    bits = policy.typical[policy._schema.index("bits_per_weight")]
    assert 4 / 16 <= bits <= 1


def test_the_command_writes_a_policy_that_loads(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.speckv"
    main([str(folder), "--out", str(out), "--name", "mine"])
    policy = load(out)
    rows = np.random.default_rng(0).random((100, 17)).astype(np.float32)
    wanted = PolicyController(random_policy()).act_batch(rows)
    np.testing.assert_array_equal(policy.controller.act_batch(rows), wanted)
    assert policy.name == "mine"
    with pytest.raises(ConfigError, match="but it exists"):
        main([str(folder), "--out", str(out)])
    before = (out / "policy.json").read_bytes()
    main([str(folder), "--out", str(out), "--name", "mine", "--overwrite"])
    assert (out / "policy.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mine.speckv"]


def test_once_a_step_says_its_loss(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    main([str(folder), "--out", str(tmp_path / "steps.speckv"), "--per-step"])
    assert isinstance(load(tmp_path / "steps.speckv").controller, AcceptanceTable)
    assert "of its tokens a second" in caplog.text


def test_a_table_is_never_behind_the_constant_on_train_prompts(traces: TraceSet) -> None:
    cost, train = make_cost_table(), traces.select(split="train")
    table, losses = compile_steps(ConstantGamma(3), traces, cost)
    assert set(losses) == set(traces.compressions)
    for name in traces.compressions:
        alone = traces.select(compressions=[name])
        best = compile_batches(ConstantGamma(3), alone, cost).gammas[1]
        rows = train.select(compressions=[name])
        assert loss_of(table, ConstantGamma(best), rows, cost) <= 1e-12


def test_a_constant_loses_nothing_to_itself(traces: TraceSet) -> None:
    one = traces.select(compressions=[traces.compressions[0]])
    best = compile_batches(ConstantGamma(0), one, make_cost_table()).gammas[1]
    table = compile_batches(ConstantGamma(best), one, make_cost_table())
    assert (table.gammas, table.loss) == ({1: best}, {1: 0.0})


@pytest.mark.parametrize("inside", [False, True])
def test_onnx_decides_alike(inside: bool, tmp_path: Path) -> None:
    if inside:
        from dataclasses import replace

        from speckv.observation import STOPPING_SCHEMA

        rng, size = np.random.default_rng(0), STOPPING_SCHEMA.size
        made = random_policy(gammas=(0, 16))
        weights = ((rng.normal(size=(64, size)) / 5).astype(np.float32), *made.weights[1:])
        made = replace(
            made,
            schema=STOPPING_SCHEMA,
            mean=np.zeros(size, np.float32),
            std=np.ones(size, np.float32),
            weights=weights,
        )
    else:
        made = random_policy()
    controller = PolicyController(made)
    write_onnx(Policy.of(controller_of(made)), tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    rows = np.random.default_rng(1).random((10_000, made.schema.size)).astype(np.float32)
    gammas, scores = session.run(["gamma", "scores"], {"observation": rows})
    ours = controller.scores(rows)
    np.testing.assert_allclose(scores, ours, atol=1e-4)
    top = np.sort(ours, axis=1)
    clear = top[:, -1] - top[:, -2] > 1e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(gammas[clear], np.array(made.gammas)[ours.argmax(axis=1)][clear])


def test_what_is_no_network_has_no_graph(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="one network"):
        write_onnx(Policy.of(ConstantGamma(2)), tmp_path)


def test_a_folder_that_does_not_say_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found none"):
        Source.find(str(tmp_path / "nowhere"))
    store(tmp_path, ConstantGamma(3))
    with pytest.raises(CheckpointError, match="Give --cost"):
        Source.find(str(tmp_path))
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"expected a readable run\.json"):
        Source.find(str(tmp_path))


def test_the_shipped_policy_is_told_a_cost_table_only_where_it_cannot_learn() -> None:
    source = Source.find("shipped")
    assert source.cost.name == "cpu-2core"
    policy = source.policy()
    assert policy.times_itself
    told = source.told(policy)
    assert not told.learns
    assert [told.never_drafts(name) for name in ("fp16", "int8", "nf4")] == [False, False, True]
    fixed = Policy.of(ConstantGamma(3))
    assert source.told(fixed) is fixed
