# SPDX-License-Identifier: Apache-2.0
"""Learning live on real weights: SmolLM2 drafted for by its own first layers."""

from dataclasses import replace
from pathlib import Path

import pytest

from speckv.agents.runs.requests import load_models
from speckv.agents.runs.settings import CostSettings, DataSettings, EnvSettings, TrainSettings
from speckv.runtime.policy import load_controller
from speckv.runtime.shipped import shipped_policy
from speckv.runtime.storage import RUN_POLICY, WEIGHTS
from tests.fakes_live import TINY_LIVE_PPO, lines, live_settings, run_live
from tests.fakes_runs import CapturedConsole
from tests.fakes_settings import shipped

pytestmark = [pytest.mark.model, pytest.mark.slow]


def real(settings: TrainSettings, weights_dir: Path) -> TrainSettings:
    assert settings.live is not None
    return replace(
        settings,
        cost=shipped(CostSettings, table="cpu-2core"),
        data=shipped(DataSettings, traces="qwen2.5-coder-greedy"),
        env=shipped(EnvSettings, budget=8),
        live=replace(settings.live, prompts=None, threads=1),
        model={
            "name": "smollm2",
            "target": str(weights_dir / "smollm2-135m-instruct-q4_1.gguf"),
            "draft": "self",
            "draft_layers": 24,
            "dtype": "float32",
            "device": "cpu",
            "compression": "fp16",
        },
    )


@pytest.mark.parametrize("name", ["ppo", "hazard_thompson"])
def test_real_models_teach_and_the_text_stays_the_targets(tmp_path: Path, weights_dir: Path, name: str) -> None:
    agent = {**TINY_LIVE_PPO, "hidden": [64, 64], "total_steps": 12, "num_steps": 6, "batch_size": 6}
    settings = live_settings(tmp_path, "run", agent if name == "ppo" else {"name": name}, requests=2)
    settings = real(replace(settings, init_from="cpu-2core-ppo" if name == "ppo" else None), weights_dir)
    console = CapturedConsole()
    report = run_live(settings, console, load_models)
    comparison = report["comparison"]
    assert isinstance(comparison, dict)
    arms = comparison["arms"]
    assert set(arms) == {"plain", "fixed-1", "fixed-2", name.replace("_", "-")}
    assert all(arm["tokens_per_s"] > 0 and arm["other_texts"] == 0 for arm in arms.values())
    assert len([line for line in lines(settings) if line["phase"] == "learn" and line["finish"]]) >= 1
    learned = load_controller(str(settings.output))
    assert learned.name == name.replace("_", "-")
    assert str(weights_dir) not in (Path(str(settings.output)) / "run.json").read_text()
    if name == "ppo":
        folders = (shipped_policy("cpu-2core-ppo"), tmp_path / "run" / RUN_POLICY)
        weights = [(folder / WEIGHTS).read_bytes() for folder in folders]
        assert weights[0] != weights[1]
