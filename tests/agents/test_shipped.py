# SPDX-License-Identifier: Apache-2.0
"""The policies that come with SpecKV: the row of the published table, and other cost tables."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speckv.cost import CostTable
from speckv.evaluation.replays import compile_pair, controller_sums
from speckv.export import Source
from speckv.export.onnx import MODEL, write_onnx
from speckv.observation import SCHEMA, observe_draft
from speckv.replay import visit
from speckv.runtime import Policy, matching
from speckv.runtime.constant import ConstantGamma
from speckv.runtime.shipped import LEARNER, SHIPPED, with_cost_table
from speckv.traces import TraceSet, find_traces

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
LARGEST_BYTES = 500_000


@pytest.mark.parametrize("name", ["cpu-2core", "rtx3090-paper"])
def test_shipped_is_level_with_the_row_of_a_policy_that_is_told_the_times(name: str) -> None:
    source = Source.find("shipped", cost=name)
    test = source.traces.select(split="test")
    groups = json.loads((RESULTS / f"zoo-{name}.json").read_text(encoding="utf-8"))["groups"]
    for compression in test.compressions:
        pair = compile_pair(test.select(compressions=[compression]), source.cost)
        sums = controller_sums(source.policy().controller, *pair)
        rows = next(g["rows"] for g in groups if g["compression"] == compression)
        row = next(r for r in rows if r["controller"] == "survival-stopping")
        assert float(sums.tokens.sum() / sums.seconds.sum()) > 0.985 * row["throughput_tokens_per_s"], compression


@pytest.mark.parametrize("folder", sorted(SHIPPED.glob("*.speckv")), ids=lambda folder: folder.stem)
def test_every_shipped_policy_states_what_it_was_made_from(folder: Path) -> None:
    policy = Policy.load(folder)
    learner = folder.stem.endswith(LEARNER)
    if learner:
        table = CostTable.load(folder.stem.removesuffix(LEARNER))
        assert policy.trained_on["cost_sha256"] == table.sha256
        assert policy.compressions == table.compressions
    assert policy.times_itself != learner
    assert ("cost" in policy.trained_on) == learner
    assert find_traces(policy.trained_on["traces"]).is_file()
    assert policy.granularity == ("step" if learner else "token")


def test_a_shipped_policy_is_found_by_its_name_with_its_training_data() -> None:
    source = Source.find("rtx3090-paper-ppo")
    assert (source.policy().name, source.cost.name) == ("ppo", "rtx3090-paper")


def test_the_shipped_policies_are_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < LARGEST_BYTES


def cheap_drafts() -> CostTable:
    """Times of another machine: `cpu-2core`, with draft passes at a tenth."""
    table = CostTable.load("cpu-2core")
    entries = {name: replace(e, draft_s=[s / 10 for s in e.draft_s]) for name, e in table.entries.items()}
    return replace(table, name="mine", entries=entries)


@pytest.fixture(scope="module")
def told() -> Policy:
    source = Source.find("shipped")
    return replace(source.told(source.policy()), trained_on={**source.policy().trained_on, **TOLD})


TOLD = {"cost": "cpu-2core", "cost_sha256": CostTable.load("cpu-2core").sha256}


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    matching._warn.cache_clear()
    caplog.set_level(logging.WARNING, logger=matching.__name__)
    return caplog


def test_another_pair_or_table_is_said_once(told: Policy, logged: pytest.LogCaptureFixture) -> None:
    policy = told
    same: dict[str, Any] = {
        "target": "Qwen/Qwen2.5-Coder-1.5B-Instruct",
        "draft": "models--Qwen--Qwen2.5-Coder-0.5B-Instruct/snapshots/abc",
        "cost": CostTable.load("cpu-2core"),
        "compression": "fp16",
    }
    matching.warn_of_differences(policy, **same)
    assert not logged.messages
    for _ in range(2):
        matching.warn_of_differences(policy, **{**same, "draft": "SmolLM2-135M", "cost": cheap_drafts()})
    (line,) = logged.messages
    assert "draft qwen2.5-coder-0.5b-instruct (here smollm2-135m), cost table cpu-2core (here mine)" in line
    assert "speckv train agent=self_timed" in line
    renamed = replace(cheap_drafts(), name="cpu-2core")
    assert matching.differences(policy, cost=renamed) == ["other times of cost table cpu-2core"]
    assert not matching.differences(Policy.of(ConstantGamma(2)), **same)


def test_another_machine_is_said(logged: pytest.LogCaptureFixture) -> None:
    table = CostTable.load("cpu-2core")
    matching.warn_of_machine(table, {key: str(value) for key, value in table.machine.items()})
    gpu = replace(table, machine={"accelerator": "NVIDIA RTX 3090"})
    matching.warn_of_machine(gpu, {"processor": "any", "cores": "8", "accelerator": "NVIDIA GeForce RTX 3090"})
    assert not logged.messages
    matching.warn_of_machine(table, {"processor": "AMD EPYC", "cores": "8", "accelerator": "none"})
    (line,) = logged.messages
    assert "cpu-2core was measured on Intel(R) Xeon(R) Processor, 2 cores, and this is AMD EPYC, 8 cores" in line


def test_where_nothing_pays_is_said(told: Policy, logged: pytest.LogCaptureFixture) -> None:
    table, policy = CostTable.load("cpu-2core"), told
    matching.warn_of_no_gain(policy, "fp16", table)
    matching.warn_of_no_gain(policy, "int8", table)
    assert not logged.messages
    matching.warn_of_no_gain(policy, "nf4", table)
    dear = replace(table, name="dear", entries={n: replace(e, draft_s=e.verify_s) for n, e in table.entries.items()})
    moved = replace(told, controller=with_cost_table(Policy.load("shipped").controller, dear, dear.compressions))
    matching.warn_of_no_gain(moved, "fp16", dear)
    assert [line[:53] for line in logged.messages] == [
        "the draft pass takes 0.86 of a target pass at nf4 on ",
        "the draft pass takes 1.00 of a target pass at fp16 on",
    ]
    assert logged.messages[0].endswith("plain decoding is the fastest there, and self-timed does not draft.")
    assert SCHEMA.size == len(policy.typical)


def test_a_busy_machine_is_said(logged: pytest.LogCaptureFixture) -> None:
    matching.warn_of_load(4, 8)
    assert not logged.messages
    matching.warn_of_load(5, 8)
    assert logged.messages[0].startswith("5 of 8 cores are busy")


@pytest.mark.parametrize("name", ["cpu-2core", "rtx3090-paper"])
def test_its_graph_decides_alike(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    source = Source.find("shipped", cost=name)
    policy = source.told(source.policy())
    test = TraceSet.load(find_traces("qwen2.5-coder-greedy")).select(split="test")
    pair = compile_pair(test, CostTable.load(name))
    states = visit(*pair, policy.controller)
    rng, rows = np.random.default_rng(0), 20_000
    chosen = rng.integers(0, len(states.limits), rows)
    depths = np.minimum(rng.integers(0, 6, rows), np.maximum(states.limits[chosen] - 1, 0))
    observations = states.observations[chosen]
    inside = observe_draft(observations, pair[0].drafts[states.places[chosen], depths])
    controller: Any = policy.controller
    started = controller.act_batch(observations)
    wanted = np.where(depths == 0, started, np.where(controller.go_on_batch(inside), policy.gamma_max, 0))
    write_onnx(policy, tmp_path)
    gammas, _ = onnxruntime.InferenceSession(tmp_path / MODEL).run(["gamma", "scores"], {"observation": inside})
    assert 0.05 < (wanted > 0).mean() < 0.95
    assert (gammas != wanted).mean() < 1e-3  # float32 sums in another order, at thresholds
