# SPDX-License-Identifier: Apache-2.0
"""Controllers of the user's own, named as "module:Class"."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from speckv import importing
from speckv.agents.own import OwnController, OwnSettings, OwnStopping, adapt
from speckv.agents.registry import TrainingData, agent_settings, find_agent, make_controller
from speckv.commands.app import compose_checked, own_names
from speckv.commands.train import settings_from
from speckv.errors import CheckpointError, ConfigError
from speckv.evaluation.replays import compile_pair
from speckv.replay import replay_controller
from speckv.runtime import Policy, load
from speckv.types import OnlineLearner, StoppingController
from tests.fakes_traces import make_cost_table, random_traces

ROOT = Path(__file__).resolve().parents[2]
TRACES, COST = random_traces(), make_cost_table()
DATA = TrainingData(train=TRACES.select(split="train"), cost=COST, seed=0)


class Always:
    def __init__(self, gamma: int = 2) -> None:
        self.gamma = gamma

    def act(self, observation: np.ndarray) -> int:
        assert observation.shape == (17,)
        return self.gamma


class Stops(Always):
    def go_on(self, observation: np.ndarray) -> bool:
        return bool(observation[19] > 0.5)


class Learns(Always):
    learns = True

    def learn(self, outcome: Any) -> None:
        self.gamma = min(outcome.num_accepted + 1, 5)

    def get_arrays(self) -> dict[str, np.ndarray]:
        return {"gamma": np.array(self.gamma)}

    def set_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        self.gamma = int(arrays["gamma"])


class Forgets(Always):
    learns = True

    def learn(self, outcome: Any) -> None:
        """Learns nothing that could be stored."""


class Nothing:
    pass


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    """These classes, as a module that a user could have written."""
    made = ModuleType("users_module")
    vars(made).update({kind.__name__: kind for kind in (Always, Stops, Learns, Forgets, Nothing)}, number=3)
    monkeypatch.setitem(sys.modules, "users_module", made)


def make(name: str, **settings: Any) -> Any:
    path, options = agent_settings({"name": f"users_module:{name}", **settings})
    return make_controller(path, options, DATA)


def test_each_becomes_the_controller_that_its_methods_make_it() -> None:
    always, stops, learner = make("Always", gamma=3), make("Stops"), make("Learns")
    assert learner.user.gamma != 2  # trained on the train prompts
    assert (always.name, always.act(np.zeros(17, np.float32))) == ("Always", 3)
    assert not isinstance(always, StoppingController | OnlineLearner)
    assert isinstance(stops, StoppingController)
    assert isinstance(learner, OnlineLearner)
    compiled = compile_pair(TRACES, COST)
    assert (
        replay_controller(always, *compiled).gamma_counts[:, 3].sum()
        == replay_controller(adapt(Always(3)), *compiled).num_steps.sum()
    )
    assert type(adapt(Stops())) is OwnStopping


@pytest.mark.parametrize("name", ["Always", "Stops", "Learns"])
def test_it_is_stored_and_loaded(name: str, tmp_path: Path) -> None:
    controller = make(name)
    Policy.of(controller).save(tmp_path / "own.speckv")
    loaded: Any = load(tmp_path / "own.speckv").controller
    assert (loaded.path, loaded.user.gamma) == (f"users_module:{name}", controller.user.gamma)


def test_loading_imports_nothing_that_was_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Policy.of(make("Always")).save(tmp_path / "own.speckv")
    monkeypatch.delitem(sys.modules, "users_module")
    monkeypatch.setattr(importing, "_allowed", False)  # a command that ran in this process allows it
    with pytest.raises(CheckpointError, match="to be imported before"):
        load(tmp_path / "own.speckv")
    monkeypatch.setattr(importing, "_allowed", True)
    with pytest.raises(CheckpointError, match="No module named 'users_module'"):
        load(tmp_path / "own.speckv")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("Alway", {}, "Expected 'Alway' in module users_module, found none. Did you mean 'Always'"),
        ("Nothing", {}, r"to have a method act\(self, observation\)"),
        ("number", {}, "to name a class, got 3"),
        ("Always", {"depth": 2}, "Expected settings that users_module:Always takes, got {'depth': 2}"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(name, **settings)


@pytest.mark.parametrize("answer", [1.5, -1, True])
def test_an_answer_that_is_no_gamma_is_refused(answer: Any) -> None:
    with pytest.raises(ConfigError, match="whole number from 0 up"):
        adapt(Always(answer)).act(np.zeros(17, np.float32))


def test_a_learner_that_cannot_be_stored_is_refused_before_training() -> None:
    controller = OwnController.create("users_module:Forgets", OwnSettings())
    with pytest.raises(ConfigError, match=r"get_arrays\(\) and set_arrays"):
        controller.require_storable()
    assert find_agent("users_module:Forgets").online


def test_the_command_line_takes_it() -> None:
    config = compose_checked("train", ["agent=users_module:Always", "agent.gamma=4", "reward=users_module:frugal"])
    settings = settings_from(config)
    assert settings.agent == {"name": "users_module:Always", "gamma": 4}
    assert settings.reward.name == "users_module:frugal"
    with pytest.raises(ConfigError, match="agent to be one"):
        own_names(["agent=ppo,users_module:Always"])


@pytest.mark.slow
def test_modules_of_the_current_folder_are_found(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Mine:\n    def __init__(self, gamma=1): self.gamma = gamma\n    def act(self, o): return self.gamma\n",
        encoding="utf-8",
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def speckv(*arguments: str) -> str:
        script = "import sys; sys.path.pop(0); from speckv.commands.main import program; program()"
        command = [sys.executable, "-c", script, *arguments, "data.compressions=[fp16]"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    speckv("train", "agent=mine:Mine", "agent.gamma=3", "eval.num_resamples=20", "output=run")
    both = speckv("evaluate", "agents=mine:Mine", "controllers=run", "num_resamples=20", "output=both")
    assert "mine:Mine" in both or "Mine" in both
