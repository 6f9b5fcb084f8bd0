# SPDX-License-Identifier: Apache-2.0
"""`speckv train`: what a run shows, what it leaves, how it stops, and that it continues as if it had not."""

import csv
import json
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from speckv.agents.runs.console import Console, InterruptedTraining, StopRequest
from speckv.agents.runs.monitor import HYPERPARAMETERS
from speckv.agents.runs.run_folder import LAST, RunFolder
from speckv.agents.runs.settings import EnvSettings, RewardSettings, TrainSettings
from speckv.agents.runs.training import train
from speckv.errors import CheckpointError, ConfigError, CostTableError, SpecKVError, TraceError
from speckv.runtime import Policy
from speckv.runtime.policy import load_controller
from speckv.traces import TraceSet
from speckv.types import StoppingController
from tests.fakes_runs import TINY_LEARNERS, TINY_PPO, CapturedConsole, save_toy, toy_settings
from tests.fakes_settings import shipped

TIME = shipped(RewardSettings, name="time")
ROOT = Path(__file__).resolve().parents[1]


def run(settings: TrainSettings, console: Console | None = None) -> None:
    train(settings, console or CapturedConsole(), config="seed: 0\n", overrides=["seed=0"])


def interrupt(signum: signal.Signals) -> Callable[[], None]:
    return lambda: signal.raise_signal(signum)


def stop_and_resume(settings: TrainSettings, step: int, signum: signal.Signals = signal.SIGTERM) -> None:
    with pytest.raises(InterruptedTraining):
        run(settings, CapturedConsole({step: interrupt(signum)}))
    run(replace(settings, resume=settings.output))


def read_checkpoint(folder: str | None) -> dict[str, object]:
    assert folder is not None
    content: dict[str, object] = torch.load(Path(folder) / LAST, weights_only=True)
    return content


def assert_same(first: object, second: object) -> None:
    """Asserts equality to the last bit, through tensors, dictionaries and lists."""
    if isinstance(first, torch.Tensor):
        assert isinstance(second, torch.Tensor)
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert isinstance(second, dict)
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert_same(value, second[key])
    elif isinstance(first, list):
        assert isinstance(second, list)
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    else:
        assert first == second


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainSettings, str]:
    """An uninterrupted run: its settings and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    console = CapturedConsole()
    settings = toy_settings(folder, folder / "run")
    run(settings, console)
    return settings, console.text


@pytest.fixture
def finished(finished_run: tuple[TrainSettings, str]) -> tuple[Path, str]:
    """Its folder, to be read alone, and what it printed."""
    return Path(str(finished_run[0].output)), finished_run[1]


@pytest.fixture
def resumable(finished_run: tuple[TrainSettings, str], tmp_path: Path) -> TrainSettings:
    """Settings that continue a copy of it."""
    copy = shutil.copytree(str(finished_run[0].output), tmp_path / "run")
    return replace(finished_run[0], output=str(copy), resume=str(copy))


def test_the_number_to_beat_comes_before_training(finished: tuple[Path, str]) -> None:
    _, text = finished
    first, _, rest = text.partition("step ")
    for promised in (
        "fake-target",
        "fake-draft",
        "sha256",
        "to validate on",
        "cost ratio",
        "best fixed gamma",
        "tok/s",
    ):
        assert promised in first
    assert "The number to beat" in first
    assert "x best fixed" in rest
    assert "clairvoyant" in rest
    headline = json.loads(text.splitlines()[-1])
    assert set(headline["x_best_fixed"]["ppo"]) == {"fp16", "nf4", "all"}


def test_a_run_leaves_all_that_decided_it(finished: tuple[Path, str]) -> None:
    run_folder, _ = finished
    names = {str(p.relative_to(run_folder)) for p in run_folder.rglob("*") if p.is_file()}
    assert {
        "config.yaml",
        "overrides.txt",
        "run.json",
        "eval.csv",
        "checkpoints/last.pt",
        "checkpoints/best.pt",
        "policy.speckv/policy.json",
        "policy.speckv/policy.safetensors",
        "evaluation/results.json",
        "evaluation/results.txt",
        "evaluation/per_prompt.csv",
        "evaluation/speedup.png",
        "evaluation/gamma.png",
        "evaluation/profiles.png",
        "evaluation/timeline.png",
    } <= names
    assert not [name for name in names if "partial" in name]
    facts = json.loads((run_folder / "run.json").read_text())
    assert set(facts) == {"agent", "commit", "cost", "machine", "seed", "started", "threads", "traces", "versions"}
    traces = TraceSet.load(run_folder.parent / "toy.parquet")
    assert facts["traces"]["sha256"] == traces.sha256
    policy = Policy.load(run_folder)
    assert policy.trained_on["traces_sha256"] == traces.sha256


def test_evaluations_come_every_so_many_environment_steps(finished: tuple[Path, str]) -> None:
    """Every 400 steps, seen at the end of rollouts of 8 * 16 = 128: at 0, 512, 896 and the end, 1024."""
    with (finished[0] / "eval.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    assert sorted(set(steps)) == [0, 512, 896, 1024]
    one = [row for row in rows if row["step"] == "512"]
    assert len({(row["prompt_id"], row["compression"]) for row in one}) == len(one) == len(rows) // 4
    assert {row["compression"] for row in one} == {"fp16", "nf4"}


def test_tensorboard_holds_curves_and_final_figures(finished: tuple[Path, str]) -> None:
    events = EventAccumulator(str(finished[0] / "tb"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {
        "eval/throughput",
        "eval/speedup_vs_ar",
        "eval/speedup_vs_best_fixed",
        "eval/tokens_per_step",
        "eval/mean_gamma",
        "rollout/lambda",
        "rollout/ep_rew_mean",
        "train/loss",
        "train/approx_kl",
        "train/explained_variance",
        "final/test_speedup_vs_best_fixed",
    } <= scalars
    assert {"eval/gamma", "rollout/gamma"} <= set(events.Tags()["histograms"])
    assert [e.step for e in events.Scalars("eval/throughput")] == [0, 512, 896, 1024]
    settings = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    for name in HYPERPARAMETERS:
        assert name.encode() in settings


def test_tensorboard_holds_the_evaluation_and_puts_the_best_fixed_gamma_first(finished: tuple[Path, str]) -> None:
    events = EventAccumulator(str(finished[0] / "tb"))
    events.Reload()
    table = events.Tensors("evaluation/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "clairvoyant" in table
    assert sorted(events.Tags()["images"])[0] == "evaluation/1_x_best_fixed"
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    first = layout.category[0].chart[0]
    assert list(first.multiline.tag) == ["eval/throughput", "eval/best_fixed_throughput"]
    scalars = events.Tags()["scalars"]
    for category in layout.category:
        for chart in category.chart:
            for tag in chart.multiline.tag:
                assert any(re.fullmatch(tag, name) for name in scalars), tag


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "sampled"),
    [
        ({}, False),
        (
            {"reward": shipped(RewardSettings, name="lambda_throughput"), "agent": {**TINY_PPO, "total_steps": 640}},
            False,
        ),
        (
            {
                "env": shipped(EnvSettings, acceptance="rejection", budget=30),
                "agent": {**TINY_PPO, "total_steps": 640, "discount": 0.9},
            },
            True,
        ),
    ],
    ids=["throughput", "lambda", "rejection-discounted"],
)
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path, change: dict[str, object], sampled: bool) -> None:
    def settings(name: str) -> TrainSettings:
        made = replace(toy_settings(tmp_path, tmp_path / name), **change)  # type: ignore[arg-type]
        save_toy(tmp_path, sampled=sampled)
        return made

    straight, stopped = settings("straight"), settings("stopped")
    run(straight)
    stop_and_resume(stopped, 384)
    first, second = (read_checkpoint(s.output) for s in (straight, stopped))
    assert_same(first, second)
    for name in ("eval.csv", "policy.speckv/policy.safetensors", "evaluation/results.json"):
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a2c", "dqn", "qr_dqn", "recurrent_ppo"])
def test_every_learner_resumes_as_if_it_had_not_stopped(tmp_path: Path, name: str) -> None:
    """With truncated episodes and a discount, so that the values behind them matter; with the memory half full."""
    agent = {**TINY_LEARNERS[name], "total_steps": 640, "discount": 0.9}
    straight, stopped = (
        replace(toy_settings(tmp_path, tmp_path / n, agent=agent), env=shipped(EnvSettings, budget=30))
        for n in ("straight", "stopped")
    )
    run(straight)
    stop_and_resume(stopped, 384)
    assert_same(*(read_checkpoint(s.output) for s in (straight, stopped)))
    for file in ("eval.csv", "policy.speckv/policy.safetensors", "evaluation/results.json"):
        assert (tmp_path / "straight" / file).read_bytes() == (tmp_path / "stopped" / file).read_bytes()
    assert load_controller(tmp_path / "stopped").name == name.replace("_", "-")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a2c", "dqn", "qr_dqn"])
def test_every_learner_without_a_memory_trains_token_by_token(tmp_path: Path, name: str) -> None:
    agent = {**TINY_LEARNERS[name], "total_steps": 384, "discount": 0.97}
    settings = replace(
        toy_settings(tmp_path, tmp_path / "run", agent=agent),
        env=shipped(EnvSettings, decides="per_token"),
        reward=shipped(RewardSettings, name="lambda_throughput"),
    )
    run(settings)
    controller = load_controller(tmp_path / "run")
    assert controller.name == f"{name.replace('_', '-')}-stopping"
    assert isinstance(controller, StoppingController)


def test_a_learner_that_replays_logs_once_a_collection(tmp_path: Path) -> None:
    run(toy_settings(tmp_path, tmp_path / "run", agent=TINY_LEARNERS["dqn"]))
    events = EventAccumulator(str(tmp_path / "run" / "tb"))
    events.Reload()
    steps = [e.step for e in events.Scalars("rollout/ep_rew_mean")]
    assert steps == [128 * k for k in range(1, 9)]
    assert {"train/loss", "rollout/exploration_rate", "rollout/lambda"} <= set(events.Tags()["scalars"])


def test_a_resumed_run_forgets_rows_behind_its_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    header = "step,prompt_id,task,compression,tokens,seconds,steps,drafted,accepted,tested\n"
    kept = "0,p,code,fp16,5,1.5,2,3,4,4\n512,p,code,fp16,5,1.5,2,3,4,4\n"
    (tmp_path / "eval.csv").write_text(header + kept + "896,p,code,fp16,5,1.5,2,3,4,4\n1024,p,co")
    folder.drop_evaluations_after(600)
    assert (tmp_path / "eval.csv").read_text() == header + kept


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_first(tmp_path: Path, signum: signal.Signals, code: int) -> None:
    settings = toy_settings(tmp_path, tmp_path / "run")
    before = signal.getsignal(signum)
    with pytest.raises(InterruptedTraining) as caught:
        run(settings, CapturedConsole({256: interrupt(signum)}))
    assert caught.value.exit_code == code
    assert signal.getsignal(signum) == before
    state = json.loads(str(read_checkpoint(settings.output)["state"]))
    assert state["num_timesteps"] == 256


def test_a_second_signal_does_not_wait() -> None:
    request = StopRequest()
    request.handle(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        request.handle(signal.SIGINT, None)


def test_resuming_a_finished_run_trains_no_further(resumable: TrainSettings) -> None:
    before = read_checkpoint(resumable.output)
    rows = Path(str(resumable.output), "eval.csv").read_bytes()
    run(resumable)
    assert_same(before, read_checkpoint(resumable.output))
    assert Path(str(resumable.output), "eval.csv").read_bytes() == rows


def test_resuming_on_other_terms_or_from_nothing_is_refused(resumable: TrainSettings, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run\.json"):
        run(replace(resumable, resume=str(tmp_path / "none")))
    with pytest.raises(CheckpointError, match="the same seed"):
        run(replace(resumable, seed=1))
    with pytest.raises(CheckpointError, match="does not fit this run"):
        run(replace(resumable, agent={**TINY_PPO, "hidden": [8]}))
    (tmp_path / "run" / LAST).write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(CheckpointError, match="damaged"):
        run(resumable)
    (tmp_path / "run" / LAST).unlink()
    with pytest.raises(CheckpointError, match="found none"):
        run(resumable)
    traces, _ = save_toy(tmp_path, sampled=True)
    with pytest.raises(CheckpointError, match="the same traces"):
        run(replace(resumable, data=replace(resumable.data, traces=traces)))


def test_an_existing_folder_is_never_written_over(tmp_path: Path) -> None:
    settings = toy_settings(tmp_path, tmp_path / "run", agent={"name": "best_fixed"})
    run(settings)
    with pytest.raises(ConfigError, match="resume="):
        run(settings)
    named = replace(settings, output=None, runs_dir=str(tmp_path / "runs"))
    first = RunFolder.create(None, named.runs_dir, "same")
    second = RunFolder.create(None, named.runs_dir, "same")
    assert (first.path.name, second.path.name) == ("same", "same-2")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"agent": {"name": "pop"}}, ConfigError, "Did you mean 'ppo'"),
        ({"reward": shipped(RewardSettings, name="speed")}, ConfigError, "reward"),
        ({"env": shipped(EnvSettings, budget=1)}, ConfigError, "budget"),
        (
            {"agent": TINY_LEARNERS["recurrent_ppo"], "env": shipped(EnvSettings, decides="per_token"), "reward": TIME},
            ConfigError,
            "per_step for a recurrent policy",
        ),
        ({"cost": "missing.json"}, CostTableError, "missing.json"),
        ({"traces": "missing.parquet"}, TraceError, "missing.parquet"),
        ({"tasks": ("poetry",)}, TraceError, "poetry"),
    ],
)
def test_an_error_leaves_no_folder(
    tmp_path: Path, change: dict[str, object], kind: type[SpecKVError], message: str
) -> None:
    settings = toy_settings(tmp_path, tmp_path / "run")
    if "cost" in change:
        settings = replace(settings, cost=replace(settings.cost, table=str(change["cost"])))
    elif "traces" in change:
        settings = replace(settings, data=replace(settings.data, traces=str(change["traces"])))
    elif "tasks" in change:
        settings = replace(settings, data=replace(settings.data, tasks=("poetry",)))
    else:
        settings = replace(settings, **change)  # type: ignore[arg-type]
    with pytest.raises(kind, match=message):
        run(settings)
    assert not (tmp_path / "run").exists()
