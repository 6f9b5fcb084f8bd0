# SPDX-License-Identifier: Apache-2.0
"""Which run folders hold the same training but for its seed."""

import json
from pathlib import Path

import pytest

from speckv.agents.constants import FixedGamma
from speckv.evaluation.entrants import SeedGroup
from speckv.evaluation.run_facts import find_seed_groups
from speckv.runtime import Policy
from speckv.runtime.policy import load_controller, named_apart
from tests.fakes_policies import store

CONFIG = """\
agent:
  name: fixed
  gamma: {gamma}
  tasks:
  - a
reward:
  name: throughput
seed: {seed}
output: {output}
runs_dir: runs
threads: {threads}
"""


def make_run(
    folder: Path, *, seed: int, gamma: int = 2, threads: int = 1, traces: str = "t", config: str = CONFIG
) -> Path:
    folder.mkdir(parents=True)
    text = config.format(seed=seed, gamma=gamma, threads=threads, output=folder)
    (folder / "config.yaml").write_text(text)
    facts = {"agent": "fixed", "seed": seed, "cost": {"name": "c", "sha256": "c"}, "traces": {"sha256": traces}}
    (folder / "run.json").write_text(json.dumps(facts))
    store(folder, FixedGamma(gamma))
    return folder


def groups(*paths: Path) -> list[SeedGroup]:
    return find_seed_groups(paths, named_apart([Policy.load(path) for path in paths], list(paths)), load_controller)


def test_runs_that_differ_by_seed_and_place_alone_belong_together(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"a-seed{seed}", seed=seed) for seed in (0, 1, 2)]
    other = make_run(tmp_path / "b-seed0", seed=0, gamma=3)
    assert groups(*runs, other) == [
        SeedGroup(name="agent fixed-2 (3 seeds)", members=("a-seed0", "a-seed1", "a-seed2")),
    ]


@pytest.mark.parametrize("change", [{"threads": 2}, {"traces": "u"}, {"gamma": 3}])
def test_any_other_difference_keeps_runs_apart(tmp_path: Path, change: dict[str, object]) -> None:
    first = make_run(tmp_path / "a", seed=0)
    assert groups(first, make_run(tmp_path / "b", seed=1, **change)) == []  # type: ignore[arg-type]


def test_the_same_seed_twice_is_the_same_run_twice(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("again", 0), ("b", 1))]
    assert groups(*runs) == [SeedGroup(name="agent fixed-2 (2 seeds)", members=("a", "b"))]
    assert groups(*runs[:2]) == []


def test_two_trainings_of_one_agent_are_told_apart(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"{name}{seed}", seed=seed, threads=threads)
        for name, threads in (("x", 1), ("y", 2))
        for seed in (0, 1)
    ]
    assert [g.name for g in groups(*runs)] == ["agent fixed-2 as x0 (2 seeds)", "agent fixed-2 as y0 (2 seeds)"]


def test_what_is_no_run_folder_is_in_no_group(tmp_path: Path) -> None:
    for name in ("a", "b"):
        store(tmp_path / name, FixedGamma(2))
    without_seed = [make_run(tmp_path / f"c{seed}", seed=seed, config="") for seed in (0, 1)]
    damaged = make_run(tmp_path / "d", seed=0)
    (damaged / "run.json").write_text("{")
    assert groups(tmp_path / "a", tmp_path / "b", *without_seed, damaged) == []
