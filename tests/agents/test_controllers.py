# SPDX-License-Identifier: Apache-2.0
"""Controllers on disk: found, loaded, named."""

import json
from pathlib import Path

import numpy as np
import pytest

from speckv.agents.constants import BestFixedGamma, FixedGamma
from speckv.agents.runs.evaluating import latest_run
from speckv.errors import CheckpointError
from speckv.observation import SCHEMA
from speckv.runtime import Policy, PolicyController
from speckv.runtime.policy import load_controller, named_apart
from speckv.runtime.shipped import shipped_for, shipped_policy
from speckv.runtime.storage import RUN_POLICY
from tests.fakes_policies import store
from tests.speckv.test_runtime_learned import random_policy


@pytest.mark.parametrize("rule", [FixedGamma(5), BestFixedGamma({"fp16": 5, "nf4": 2})])
def test_rules_survive_the_disk(tmp_path: Path, rule: FixedGamma | BestFixedGamma) -> None:
    store(tmp_path, rule)
    loaded = load_controller(tmp_path)
    assert loaded.name == rule.name
    rows = np.zeros((3, SCHEMA.size), np.float32)
    rows[:, SCHEMA.index("bits_per_weight")] = [1.0, 0.25, 0.9]
    assert loaded.act_batch(rows).tolist() == rule.act_batch(rows).tolist()
    assert load_controller(tmp_path, name="mine").name == "mine"


def test_policies_load_from_a_run_and_from_their_own_folder(tmp_path: Path) -> None:
    store(tmp_path, PolicyController(random_policy()))
    for folder in (tmp_path, tmp_path / RUN_POLICY):
        assert isinstance(load_controller(folder), PolicyController)


@pytest.mark.parametrize("name", ["agent.json", "controller.json", "policy/policy.json"])
def test_runs_of_earlier_versions_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"found {name} of an earlier version of SpecKV. Train again"):
        load_controller(tmp_path)


def test_a_folder_without_a_controller_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found neither"):
        load_controller(tmp_path)


def test_two_of_a_name_are_called_after_their_folders(tmp_path: Path) -> None:
    for name in ("one", "two"):
        store(tmp_path / name, PolicyController(random_policy()))
    store(tmp_path / "three", FixedGamma(1))
    paths = [tmp_path / name for name in ("one", "two", "three")]
    loaded = named_apart([Policy.load(path) for path in paths], paths)
    assert [c.name for c in loaded] == ["one", "two", "agent fixed-1"]


def make_run(folder: Path, *, started: str, cost: str = "c", traces: str = "t", whole: bool = True) -> None:
    folder.mkdir(parents=True)
    facts = {"started": started, "cost": {"name": cost}, "traces": {"sha256": traces}}
    (folder / "run.json").write_text(json.dumps(facts))
    if whole:
        store(folder, FixedGamma(1))


def test_the_latest_run_is_the_newest_that_fits(tmp_path: Path) -> None:
    assert latest_run(tmp_path, cost="c", traces_sha256="t") is None
    make_run(tmp_path / "b", started="2026-01-02")
    make_run(tmp_path / "a", started="2026-01-03")
    make_run(tmp_path / "other-cost", started="2026-01-04", cost="d")
    make_run(tmp_path / "other-traces", started="2026-01-05", traces="u")
    make_run(tmp_path / "stopped-early", started="2026-01-06", whole=False)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    assert latest_run(tmp_path, cost="c", traces_sha256="t") == tmp_path / "a"


def test_a_lookup_has_a_shipped_policy_of_its_own() -> None:
    assert shipped_for() == shipped_for("Qwen/Qwen2.5-Coder-0.5B-Instruct") == shipped_policy("self-timed")
    assert shipped_for("prompt-lookup(4,2)") == shipped_for("lookup") == shipped_policy("self-timed-lookup")
