# SPDX-License-Identifier: Apache-2.0
"""Controllers on disk: found, loaded, named."""

import json
from pathlib import Path

import numpy as np
import pytest

from agents import controllers
from agents.best_fixed import BestFixedGamma
from agents.controllers import latest_run, load_named, shipped_policy
from agents.fixed import FixedGamma
from speckv.errors import CheckpointError
from speckv.observation import SCHEMA
from speckv.runtime import PolicyController
from speckv.runtime.stored import load_controller, save_rule
from tests.speckv.test_runtime_policy import random_policy


@pytest.mark.parametrize("rule", [FixedGamma(5), BestFixedGamma({"fp16": 5, "nf4": 2})])
def test_rules_survive_the_disk(tmp_path: Path, rule: FixedGamma | BestFixedGamma) -> None:
    save_rule(tmp_path, rule)
    loaded = load_controller(tmp_path)
    assert vars(loaded).keys() == vars(rule).keys()
    assert loaded.name == rule.name
    rows = np.zeros((3, SCHEMA.size), np.float32)
    rows[:, SCHEMA.index("bits_per_weight")] = [1.0, 0.25, 0.9]
    assert loaded.act_batch(rows).tolist() == rule.act_batch(rows).tolist()
    assert load_controller(tmp_path, name="mine").name == "mine"


def test_policies_load_from_a_run_and_from_their_own_folder(tmp_path: Path) -> None:
    random_policy().save(tmp_path / "policy")
    for folder in (tmp_path, tmp_path / "policy"):
        assert isinstance(load_controller(folder), PolicyController)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable JSON"),
        ("[]", 'expected "format"'),
        (json.dumps({"format": "speckv-controller", "format_version": 2, "gamma": 1}), "version 1"),
        (json.dumps({"format": "speckv-controller", "format_version": 1, "name": "x", "gamma": "four"}), "one gamma"),
        (json.dumps({"format": "speckv-controller", "format_version": 1, "gamma": 4}), "expected a name"),
    ],
)
def test_damaged_rules_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "controller.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_controller(tmp_path)


def test_a_folder_without_a_controller_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found neither"):
        load_controller(tmp_path)


def test_two_of_a_name_are_called_after_their_folders(tmp_path: Path) -> None:
    for name in ("one", "two"):
        random_policy().save(tmp_path / name / "policy")
    save_rule(tmp_path / "three", FixedGamma(1))
    loaded = load_named([tmp_path / name for name in ("one", "two", "three")])
    assert [c.name for c in loaded] == ["one", "two", "agent fixed-1"]


def make_run(folder: Path, *, started: str, cost: str = "c", traces: str = "t", whole: bool = True) -> None:
    folder.mkdir(parents=True)
    facts = {"started": started, "cost": {"name": cost}, "traces": {"sha256": traces}}
    (folder / "run.json").write_text(json.dumps(facts))
    if whole:
        save_rule(folder, FixedGamma(1))


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


def test_a_shipped_policy_goes_by_its_cost_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "SHIPPED", tmp_path)
    random_policy().save(tmp_path / "fast")
    assert shipped_policy("fast") == tmp_path / "fast"
    assert shipped_policy("slow") is None
