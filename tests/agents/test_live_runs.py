# SPDX-License-Identifier: Apache-2.0
"""`train.py env=live` on tables: what a run learns, leaves and says, how it stops, and that it goes on."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from speckv.agents.bandits.base import Bandit
from speckv.agents.registry import agent_settings
from speckv.agents.runs.checkpoint import find_source, start_bandit
from speckv.agents.runs.console import InterruptedTraining
from speckv.agents.runs.environments import LiveEnvironment, make_live_environment
from speckv.agents.runs.monitor import LiveMonitor
from speckv.agents.runs.online import CHECKPOINT, load_online
from speckv.agents.runs.requests import RequestLog, load_live_task, warm_up
from speckv.agents.runs.run_folder import LAST, Run, RunFolder
from speckv.agents.runs.settings import TrainSettings
from speckv.agents.runs.training import LearnerTraining, train
from speckv.cost import CostTable
from speckv.errors import CheckpointError, ConfigError, DataError, DeviceError, ProbabilityError, SpecKVError
from speckv.observation import SCHEMA
from speckv.runtime.learned import PolicyController
from speckv.runtime.policy import load_controller
from speckv.runtime.storage import RUN_POLICY, WEIGHTS
from speckv.types import StoppingController
from tests.fakes_live import (
    TINY_LIVE_PPO,
    ctrl_c_twice,
    lines,
    live_settings,
    loader,
    lost_device,
    no_numbers,
    out_of_memory,
    run_live,
)
from tests.fakes_runs import TINY_PPO, CapturedConsole, toy_settings

BANDITS = ("calibrated_stopping", "hazard_thompson", "linucb", "tapout", "thompson", "ucb1")


def interrupt() -> None:
    signal.raise_signal(signal.SIGTERM)


def test_what_requests_need_is_captured_before_the_first_one_teaches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = live_settings(tmp_path, "ucb1", {"name": "ucb1"})
    assert settings.live is not None
    task = load_live_task(settings, loader())
    asked: list[int] = []
    monkeypatch.setattr(task.engine, "capture_ahead", asked.append)
    warm_up(task)
    longest = max(len(prompt.tokens) for prompt in (*task.learning, *task.heldout))
    assert asked == [longest + task.max_new_tokens]


def counters(settings: TrainSettings) -> dict[str, object]:
    content = torch.load(Path(str(settings.output)) / LAST, weights_only=True)
    state: dict[str, object] = json.loads(content["state"])
    return state


def tags(settings: TrainSettings) -> set[str]:
    events = EventAccumulator(str(Path(str(settings.output)) / "tb"))
    events.Reload()
    return set(events.Tags()["scalars"])


@pytest.mark.parametrize("name", BANDITS)
def test_a_bandit_learns_from_live_requests(tmp_path: Path, name: str) -> None:
    settings = live_settings(tmp_path, "run", {"name": name})
    console = CapturedConsole()
    report = run_live(settings, console)
    folder = Path(str(settings.output))
    learned = [line for line in lines(settings) if line["phase"] == "learn"]
    assert [line["request"] for line in learned] == [0, 1, 2, 3]
    assert len({line["prompt_id"] for line in learned[:3]}) == 3
    assert all(line["finish"] == "length" for line in learned)
    before, _ = load_online(folder / CHECKPOINT, name, agent_settings({"name": name})[1])
    stored = load_controller(folder)
    assert isinstance(stored, Bandit)
    seen = stored.get_arrays()
    assert any(np.any(value != 0) for value in seen.values())
    for key, value in before.get_arrays().items():
        np.testing.assert_array_equal(value, seen[key])
    assert {"live/tokens_per_s", "live/running_reward", "live/tokens_per_step", "final/x_plain"} <= tags(settings)
    assert "request" in console.text
    assert "in hindsight" in console.text
    assert json.loads(console.text.splitlines()[-1])["run"] == str(folder)
    assert json.loads((folder / "evaluation" / "live.json").read_text()) == json.loads(json.dumps(report))


def test_the_comparison_decodes_the_same_prompts_with_all_arms_and_teaches_nobody(tmp_path: Path) -> None:
    with_it = live_settings(tmp_path, "with", {"name": "ucb1"}, heldout=2)
    without = live_settings(tmp_path, "without", {"name": "ucb1"}, heldout=0)
    report, other = run_live(with_it), run_live(without)
    compared = [(line["prompt_id"], line["arm"]) for line in lines(with_it) if line["phase"] == "compare"]
    arms = ["plain", "fixed-1", "fixed-2", "ucb1"]
    assert compared == [("test0", arm) for arm in arms] + [("test1", arm) for arm in (*arms[1:], arms[0])]
    assert "comparison" not in other
    comparison = report["comparison"]
    assert isinstance(comparison, dict)
    figures = comparison["arms"]
    best = max(arms[:3], key=lambda arm: figures[arm]["tokens_per_s"])
    assert comparison["best_fixed"] == best
    assert comparison["x_best_fixed"] == figures["ucb1"]["tokens_per_s"] / figures[best]["tokens_per_s"]
    assert all(figures[arm]["other_texts"] == 0 for arm in arms), "greedy texts do not depend on who decides"
    assert (tmp_path / "with" / RUN_POLICY / WEIGHTS).read_bytes() == (
        tmp_path / "without" / RUN_POLICY / WEIGHTS
    ).read_bytes()


@pytest.mark.parametrize(("name", "decides"), [("ppo", "per_step"), ("ppo", "per_token"), ("a2c", "per_step")])
def test_a_learner_learns_live(tmp_path: Path, name: str, decides: str) -> None:
    agent = {
        key: value for key, value in TINY_LIVE_PPO.items() if name == "ppo" or key not in ("batch_size", "num_epochs")
    }
    settings = live_settings(tmp_path, "run", {**agent, "name": name}, decides=decides)
    console = CapturedConsole()
    run_live(settings, console)
    assert counters(settings)["num_timesteps"] == 64
    assert int(str(counters(settings)["n_updates"])) >= 4
    assert console.text.count("tokens a step") >= 4, "every update says something"
    controller = load_controller(str(settings.output))
    assert isinstance(controller, StoppingController) == (decides == "per_token")
    phases = [line["phase"] for line in lines(settings)]
    assert set(phases) == {"measure", "learn", "compare"}
    wanted = {"live/tokens_per_s", "live/tokens_per_step", "live/reward", "rollout/ep_rew_mean", "final/x_best_fixed"}
    assert wanted <= tags(settings)


@pytest.mark.parametrize("name", ["calibrated_stopping", "exp3spec", "hazard_thompson", "linucb", "lints", "thompson"])
def test_a_resumed_bandit_equals_one_that_never_stopped(tmp_path: Path, name: str) -> None:
    """On a clock that ticks; the machine's own would make rewards differ."""
    straight, stopped = (live_settings(tmp_path, n, {"name": name}, heldout=0) for n in ("straight", "stopped"))
    run_live(straight)
    with pytest.raises(InterruptedTraining):
        run_live(stopped, CapturedConsole({2: interrupt}))
    assert [line["request"] for line in lines(stopped)] == [0, 1]
    with (tmp_path / "stopped" / "decoded.jsonl").open("a") as file:
        file.write('{"request": 2, "pha')  # what a crash of the machine may leave
    run_live(replace(stopped, resume=stopped.output))
    assert [line["tokens"] for line in lines(straight)] == [line["tokens"] for line in lines(stopped)]
    first, second = tmp_path / "straight", tmp_path / "stopped"
    assert (first / RUN_POLICY / WEIGHTS).read_bytes() == (second / RUN_POLICY / WEIGHTS).read_bytes()
    _, agent = agent_settings({"name": name})
    generators = [load_online(folder / CHECKPOINT, name, agent)[0].rng for folder in (first, second)]
    assert generators[0].random() == generators[1].random()


@pytest.mark.parametrize("agent", [{"name": "ucb1"}, TINY_LIVE_PPO], ids=["ucb1", "ppo"])
def test_a_comparison_that_was_stopped_is_made_when_the_run_goes_on(tmp_path: Path, agent: dict[str, object]) -> None:
    settings = live_settings(tmp_path, "run", agent)
    last = 64 if agent["name"] == "ppo" else 4
    with pytest.raises(InterruptedTraining):
        run_live(settings, CapturedConsole({last: interrupt}))
    learned = [line for line in lines(settings) if line["phase"] != "compare"]
    report = run_live(replace(settings, resume=settings.output))
    assert "comparison" in report
    found = lines(settings)
    assert [line["arm"] for line in found if line["phase"] == "compare"] == [
        "plain",
        "fixed-1",
        "fixed-2",
        agent["name"],
    ]
    again = [line for line in found if line["phase"] != "compare"]
    assert again == [line for line in learned if line["finish"] or line["phase"] == "measure"]


def test_a_learner_stops_at_an_update_and_goes_on_there(tmp_path: Path) -> None:
    settings = live_settings(tmp_path, "run", TINY_LIVE_PPO)
    with pytest.raises(InterruptedTraining):
        run_live(settings, CapturedConsole({32: interrupt}))
    before = counters(settings)
    assert before["num_timesteps"] == 32
    assert lines(settings)[-1]["finish"] is None, "the request that was cut off stays on record"
    console = CapturedConsole()
    run_live(replace(settings, resume=settings.output), console)
    after = counters(settings)
    assert after["num_timesteps"] == 64
    assert int(str(after["n_updates"])) == 2 * int(str(before["n_updates"]))
    assert "beginning with step 32" in console.text
    numbers = [int(str(line["request"])) for line in lines(settings) if line["phase"] == "learn"]
    assert numbers == sorted(set(numbers)), "no request twice"


def test_the_request_in_hand_begins_anew(tmp_path: Path) -> None:
    settings = live_settings(tmp_path, "run", TINY_LIVE_PPO, heldout=0)
    with pytest.raises(InterruptedTraining):
        run_live(settings, CapturedConsole({16: interrupt}))
    in_hand = lines(settings)[-1]
    run_live(replace(settings, resume=settings.output))
    again = next(line for line in lines(settings) if line["request"] == in_hand["request"])
    assert again["prompt_id"] == in_hand["prompt_id"]
    assert again["finish"] == "length"


@pytest.mark.parametrize("agent", [{"name": "ucb1"}, TINY_LIVE_PPO], ids=["ucb1", "ppo"])
@pytest.mark.parametrize(
    ("fail", "kind", "message"),
    [
        (out_of_memory, DeviceError, r"ran out of memory \(CUDA out of memory.*model\.compression"),
        (lost_device, DeviceError, r"The device failed \(CUDA error.*start again"),
        (no_numbers, ProbabilityError, "dtype=float32"),
        (ctrl_c_twice, KeyboardInterrupt, None),
    ],
)
def test_a_failure_keeps_what_was_learned_and_decoded(
    tmp_path: Path,
    agent: dict[str, object],
    fail: Callable[[torch.Tensor], torch.Tensor],
    kind: type[BaseException],
    message: str | None,
) -> None:
    settings = live_settings(tmp_path, "run", agent, requests=20)
    console = CapturedConsole()
    with pytest.raises(kind, match=message):
        run_live(settings, console, loader(60, fail))
    found = lines(settings)
    assert found[-1]["finish"] is None
    assert len(found) > 1
    assert load_controller(str(settings.output)) is not None
    assert "go on with resume=" in console.text
    run_live(replace(settings, resume=settings.output))
    assert all(line["finish"] for line in lines(settings) if line["phase"] == "learn" and agent["name"] == "ucb1")


def test_a_ppo_from_replay_begins_with_its_own_decisions(tmp_path: Path) -> None:
    source = toy_settings(tmp_path, tmp_path / "replay", agent={**TINY_PPO, "total_steps": 256})
    train(source, CapturedConsole(), config="", overrides=[])
    given = load_controller(tmp_path / "replay")
    assert isinstance(given, PolicyController)
    settings = live_settings(tmp_path, "live", TINY_LIVE_PPO)
    assert settings.live is not None
    task = load_live_task(settings, loader())
    _, agent = agent_settings(settings.agent)
    env, log = make_live_environment(task, settings), RequestLog(tmp_path / "log.jsonl")
    run = Run(name="ppo", agent=agent, settings=settings, console=CapturedConsole(), config="", overrides=())

    def training(source: Path | None) -> LearnerTraining:
        live = LiveEnvironment(env, log, "ppo", 1)
        return LearnerTraining(run, live, partial(LiveMonitor, live), provenance={}, source=source)

    warm = training(tmp_path / "replay")
    assert "actor, critic" in warm.begin(RunFolder(tmp_path))
    assert log.read() == [], "nothing needs to be measured"
    for prompt in range(3):
        observation, _ = env.reset(seed=1, options={"prompt": prompt})
        ended = False
        while not ended:
            action, _ = warm.model.predict(observation, deterministic=True)
            assert int(action) == given.act(observation)
            observation, _, terminated, truncated, _ = env.step(np.int64(action))
            ended = terminated or truncated
    untrained = training(None)
    untrained.begin(RunFolder(tmp_path))
    rng = np.random.default_rng(0)
    seen = rng.random((200, len(observation))).astype(np.float32)
    wanted = given.act_batch(seen)
    assert np.array_equal(warm.model.predict(seen, deterministic=True)[0], wanted)
    assert not np.array_equal(untrained.model.predict(seen, deterministic=True)[0], wanted)


def test_a_shipped_policy_gives_its_actor(tmp_path: Path) -> None:
    agent = {**TINY_LIVE_PPO, "hidden": [64, 64], "learning_rate": 1e-12, "total_steps": 16}
    settings = replace(live_settings(tmp_path, "run", agent), init_from="cpu-2core-ppo")
    console = CapturedConsole()
    run_live(settings, console)
    assert "its critic is not stored" in console.text
    shipped = load_controller(find_source("shipped", "cpu-2core"))
    learned = load_controller(str(settings.output))
    seen = np.random.default_rng(0).random((200, SCHEMA.size)).astype(np.float32)
    np.testing.assert_array_equal(shipped.act_batch(seen), learned.act_batch(seen))
    assert find_source("rtx3090-paper-ppo", "cpu-2core").name == "rtx3090-paper-ppo.speckv"


@pytest.mark.slow
def test_a_bandit_from_replay_begins_with_its_own_decisions(tmp_path: Path) -> None:
    source = toy_settings(tmp_path, tmp_path / "replay", agent={"name": "linucb"})
    train(source, CapturedConsole(), config="", overrides=[])
    _, agent = agent_settings({"name": "linucb"})
    cost = CostTable.load(source.cost.table)
    warm = start_bandit("linucb", agent, tmp_path / "replay", cost, "fp16", seed=0)
    given = load_controller(tmp_path / "replay")
    seen = np.random.default_rng(0).random((50, SCHEMA.size)).astype(np.float32)
    assert [warm.act(row) for row in seen] == [given.act(row) for row in seen]
    settings = replace(live_settings(tmp_path, "live", {"name": "linucb"}), init_from=str(tmp_path / "replay"))
    run_live(settings)
    after = load_controller(str(settings.output))
    assert isinstance(after, Bandit)
    assert any(not np.array_equal(warm.get_arrays()[key], value) for key, value in after.get_arrays().items())


@pytest.mark.parametrize(
    ("agent", "init_from", "message"),
    [
        (TINY_LIVE_PPO, "nowhere", "a run folder or a shipped policy"),
        (TINY_LIVE_PPO, "cpu-2core-pp", "Did you mean 'cpu-2core-ppo'"),
        (TINY_LIVE_PPO, "cpu-2core-ppo", r"Say agent\.hidden=\[64, 64\]"),
        (TINY_LIVE_PPO, "bandit", "the policy of a learner such as ppo, got 'ucb1'"),
        (
            {**TINY_LIVE_PPO, "name": "recurrent_ppo", "lstm_hidden": 8},
            "cpu-2core-ppo",
            "remembers as this agent's does",
        ),
        ({"name": "linucb"}, "bandit", "an agent 'linucb', got 'ucb1'"),
        ({"name": "ucb1", "width": 2.0}, "bandit", "with the settings of this run"),
        ({"name": "ucb1"}, "cpu-2core-ppo", "an agent 'ucb1', got 'ppo'"),
    ],
)
def test_what_cannot_be_begun_with_is_refused(
    tmp_path: Path, agent: dict[str, object], init_from: str, message: str
) -> None:
    run_live(live_settings(tmp_path, "bandit", {"name": "ucb1"}, heldout=0, requests=1))
    source = str(tmp_path / "bandit") if init_from == "bandit" else init_from
    with pytest.raises(CheckpointError, match=message):
        run_live(replace(live_settings(tmp_path, "run", agent), init_from=source))
    assert not (tmp_path / "run").exists()


def test_a_policy_of_the_other_granularity_or_range_is_refused(tmp_path: Path) -> None:
    agent = {**TINY_LIVE_PPO, "hidden": [64, 64]}
    settings = replace(live_settings(tmp_path, "run", agent, decides="per_token"), init_from="cpu-2core-ppo")
    with pytest.raises(CheckpointError, match="a policy of SpecKV/DraftStopping-v0"):
        run_live(settings)
    narrow = replace(live_settings(tmp_path, "run", agent), init_from="cpu-2core-ppo")
    with pytest.raises(CheckpointError, match=r"env\.gamma_max as it was trained"):
        run_live(replace(narrow, env=replace(narrow.env, gamma_max=8)))


@pytest.mark.parametrize(
    ("agent", "decides", "kind", "message"),
    [
        ({"name": "survival"}, "per_step", ConfigError, "learns from live requests"),
        ({"name": "dqn"}, "per_step", ConfigError, "learns from live requests"),
        ({"name": "ucb1"}, "per_token", ConfigError, "which decides at moments of its own"),
        ({**TINY_LIVE_PPO, "num_envs": 2}, "per_step", ConfigError, r"agent\.num_envs=1"),
        (
            {**TINY_LIVE_PPO, "name": "recurrent_ppo", "lstm_hidden": 8},
            "per_token",
            ConfigError,
            "per_step for a recurrent policy",
        ),
    ],
)
def test_what_cannot_learn_live_is_refused(
    tmp_path: Path, agent: dict[str, object], decides: str, kind: type[SpecKVError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run_live(live_settings(tmp_path, "run", agent, decides=decides))
    assert not (tmp_path / "run").exists()


def test_prompts_and_rewards_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    settings = live_settings(tmp_path, "run", TINY_LIVE_PPO)
    assert settings.live is not None
    with pytest.raises(DataError, match="got 0 and 0"):
        run_live(replace(settings, live=replace(settings.live, max_prompt_tokens=1)))
    with pytest.raises(ConfigError, match="a reward of"):
        run_live(replace(settings, reward=replace(settings.reward, name="tokens_minus_cost")))
    with pytest.raises(ConfigError, match=r"live\.sampling\.mod'.*Did you mean 'mode'"):
        run_live(replace(settings, live=replace(settings.live, sampling={"mod": "greedy"})))
    assert not (tmp_path / "run").exists()


def test_resuming_on_other_terms_or_from_nothing_is_refused(tmp_path: Path) -> None:
    settings = live_settings(tmp_path, "run", {"name": "ucb1"}, heldout=0, requests=1)
    run_live(settings)
    again = replace(settings, resume=settings.output)
    with pytest.raises(CheckpointError, match="the same seed"):
        run_live(replace(again, seed=1))
    with pytest.raises(CheckpointError, match="the same live"):
        run_live(replace(again, env=replace(settings.env, budget=9)))
    (tmp_path / "run" / CHECKPOINT).write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="damaged"):
        run_live(again)
    (tmp_path / "run" / CHECKPOINT).unlink()
    with pytest.raises(CheckpointError, match="found none"):
        run_live(again)


def test_a_recurrent_policy_learns_live_too(tmp_path: Path) -> None:
    settings = live_settings(tmp_path, "run", {**TINY_LIVE_PPO, "name": "recurrent_ppo", "lstm_hidden": 8}, heldout=0)
    run_live(settings)
    assert load_controller(str(settings.output)).name == "recurrent-ppo"
