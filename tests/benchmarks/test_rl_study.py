# SPDX-License-Identifier: Apache-2.0
"""The study of rewards, discounts and algorithms: what it runs, what it keeps, and a run at toy size."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks import learning_curves, rl_study
from benchmarks.study_arms import Arm, run_arm
from benchmarks.study_store import Record, Store
from speckv.agents.registry import agent_settings
from speckv.agents.rl.hyperparameters import LearnerSettings
from speckv.commands import train as program
from speckv.commands.app import compose_checked
from speckv.errors import ConfigError
from tests.fakes_runs import TINY_PPO, save_toy


@pytest.mark.slow
def test_every_arm_is_a_command_line_that_trains() -> None:
    arms = rl_study.plan()
    assert len({arm.name for arm in arms}) == len(arms)
    for arm in arms:
        settings = program.settings_from(compose_checked(program.NAME, arm.overrides))
        name, agent = agent_settings(settings.agent)
        assert isinstance(agent, LearnerSettings)
        agent.check_environment(settings.env.decides)
        said = f"{name}/{settings.env.decides}/{settings.reward.name}/{agent.discount:g}"
        assert arm.name == said


def toy_arm(folder: Path, *, reward: str = "throughput") -> Arm:
    traces, cost = save_toy(folder)
    small = [f"agent.{key}={value}" for key, value in TINY_PPO.items() if key not in ("name", "total_steps")]
    where = (f"data.traces={traces}", f"cost.table={cost}", "data.validation_fraction=0.3", f"reward={reward}")
    return Arm(name="toy", overrides=(*where, *small))


def run_toy(arm: Arm) -> Record:
    return run_arm(arm, cost="cpu-2core", steps=512, seed=0, evaluations=4, num_resamples=50)


def test_an_arm_leaves_its_curve_and_its_test_interval(tmp_path: Path) -> None:
    record = run_toy(toy_arm(tmp_path))
    assert [point["step"] for point in record["validation"]] == [0, 128, 256, 384, 512]
    assert record["last"] == record["validation"][-1]
    assert record["best"]["vs_best_fixed"] == max(point["vs_best_fixed"] for point in record["validation"])
    assert set(record["test"]) == {"fp16", "nf4", "all"}
    assert record["test"]["all"]["low"] <= record["test"]["all"]["estimate"] <= record["test"]["all"]["high"]
    json.dumps(record)


def test_an_arm_that_cannot_run_says_so(tmp_path: Path) -> None:
    arm = toy_arm(tmp_path)
    broken = Arm(name="broken", overrides=(*arm.overrides, "env=stopping"))
    assert "a ratio" in run_toy(broken)["error"]


def test_a_store_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    path, made = tmp_path / "out.json", []
    store = Store(path, benchmark="toy", setting={"steps": 1})
    store.add("first", {"best": {"vs_best_fixed": 1.0, "step": 1}})
    again = Store(path, benchmark="toy", setting={"steps": 1})
    assert again.records["first"]["best"]["step"] == 1
    assert set(again.records["first"]["made"]) == {"commit", "machine", "versions"}

    def job() -> Record:
        made.append("called here")
        return {}

    rl_study.run_all({"first": job}, again, processes=1)
    assert made == []
    with pytest.raises(ConfigError, match="Name another file"):
        Store(path, benchmark="toy", setting={"steps": 2})


@pytest.mark.figures
def test_curves_are_drawn_one_panel_a_granularity(tmp_path: Path) -> None:
    points = [{"step": step, "vs_best_fixed": 0.9 + step / 1e4} for step in (0, 100, 1000)]
    records = {
        f"{name}/seed{seed}": {"validation": points} for name in ("ppo/per_step", "ppo/per_token") for seed in (0, 1)
    }
    learning_curves.draw(records, tmp_path / "curves.png", "toy")
    assert (tmp_path / "curves.png").stat().st_size > 5000
    ax = learning_curves.panel(Figure().subplots(), {"ppo": [points, points]}, "title")
    first, _, reference = ax.get_lines()
    assert first.get_label() == "ppo"
    # A log axis has no place for the policy that has seen nothing.
    assert np.asarray(first.get_xdata()).tolist() == [100, 1000]
    assert np.asarray(reference.get_ydata()).tolist() == [1, 1]
