# SPDX-License-Identifier: Apache-2.0
"""The command line on a tiny pair: what works, and one line with status 2 for what does not."""

import json
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from speckv.agents.bandits.arms import Ucb1
from speckv.agents.registry import TrainingData, agent_settings, make_controller
from speckv.commands.main import main
from speckv.cost import CostTable
from speckv.cost.times import StepTimes
from speckv.errors import CheckpointError
from speckv.runtime import policy
from speckv.traces import TraceSet
from speckv.types import Controller
from tests.fakes import save_tiny, tiny_qwen
from tests.fakes_policies import store
from tests.fakes_runs import toy_traces
from tests.fakes_traces import make_cost_table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pair")
    target = tiny_qwen(0)
    save_tiny(folder / "target", target)
    save_tiny(folder / "draft", tiny_qwen(1, like=target, noise=0.02))
    names = [f"model.{role}={folder / role}" for role in ("target", "draft")]
    return [*names, "model.name=tiny", "model.dtype=float32", "model.device=cpu"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    records = [
        {"id": f"{s}{i}", "task": "code", "prompt": "abc"[: i + 1], "split": s}
        for s in ("train", "test")
        for i in range(3)
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    return path


@pytest.mark.slow
def test_profile_merge_calibrate_decode(
    model: list[str], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["profile", *model, f"prompts=[{prompts}]", "compressions=[fp16]", "max_new_tokens=8"]
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    assert main([*common, f"out={one}", "per_task={train: 1, test: 1}"]) == 0
    assert main([*common, f"out={two}", "skip={train: 1, test: 1}", "per_task={train: 2, test: 2}"]) == 0
    merged = tmp_path / "all.parquet"
    assert main(["merge", f"out={merged}", f"inputs=[{one},{two}]"]) == 0
    assert len(TraceSet.load(merged).sequences) == 6
    table = tmp_path / "here.json"
    measured = ["compressions=[fp16]", "reference_context=16", "far_context=40", "repeats=1", "warmups=1"]
    measured += ["batches=[1,2]", "check_tokens=8", f"check_prompts=[{prompts}]"]
    assert main(["calibrate", *model, "name=here", f"out={table}", *measured]) == 0
    assert CostTable.load(table).covers.startswith("fp16 in float32, batch 1/2, widths 1 to 17")
    assert CostTable.load(table).fit["fp16"].measured_s > 0
    capsys.readouterr()
    assert main(["decode", "abc", *model, f"cost.table={table}", "controller=3", "max_new_tokens=12"]) == 0
    streamed = capsys.readouterr().out
    assert 1 <= len(streamed.strip()) <= 12


def agent_run(folder: Path, name: str) -> Path:
    """What `train.py agent=NAME` leaves of a controller."""
    _, settings = agent_settings({"name": name})
    if name == "ucb1":
        controller: Controller = Ucb1(settings, StepTimes.of(make_cost_table()), 0)
    else:
        controller = make_controller(name, settings, TrainingData(train=toy_traces(4), cost=make_cost_table(), seed=0))
    store(folder, controller)
    return folder


@pytest.mark.parametrize("name", ["kangaroo", "sglang_ema", "ucb1"])
def test_decode_runs_agents_that_an_installed_package_loads(
    name: str,
    model: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As the checkout declares it: an installation made before it did would not know."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    offered = [EntryPoint(n, v, policy.GROUP) for n, v in project["entry-points"][policy.GROUP].items()]
    monkeypatch.setattr(policy, "entry_points", lambda group: [point for point in offered if point.group == group])
    run = agent_run(tmp_path / "run", name)
    cost = tmp_path / "fake.json"
    make_cost_table().save(cost)
    caplog.set_level("INFO")
    assert main(["decode", "abc", *model, f"cost.table={cost}", f"controller={run}", "max_new_tokens=12"]) == 0
    title = name.replace("_", "-")
    assert any(message.startswith(f"{title} ") and "tokens/s" in message for message in caplog.messages)
    assert "the same text" in caplog.text


def test_decode_says_what_is_missing_where_no_package_loads_an_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "entry_points", lambda group: [])  # noqa: ARG005
    with pytest.raises(CheckpointError, match=r"got 'kangaroo'.*pip install"):
        policy.load_controller(agent_run(tmp_path / "run", "kangaroo"))


@pytest.mark.slow
def test_a_lookup_in_every_command(
    model: list[str], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = [f"prompts=[{prompts}]", "compressions=[fp16]", "max_new_tokens=20"]
    with_model, derived, straight = (tmp_path / f"{name}.parquet" for name in ("model", "derived", "straight"))
    lookup = [*model, "model.draft=lookup", "model.lookup_shortest=1"]
    assert main(["profile", *model, *shared, f"out={with_model}"]) == 0
    assert main(["profile", *lookup, *shared, f"out={derived}", f"from={with_model}"]) == 0
    assert main(["profile", *lookup, *shared, f"out={straight}"]) == 0
    one, other = TraceSet.load(derived), TraceSet.load(straight)
    for metadata in (one.metadata, other.metadata):
        assert (metadata.draft_id, metadata.draft_sha256, metadata.dtype["draft"]) == ("prompt-lookup(4,1)", "", "none")
    for a, b in zip(one.sequences, other.sequences, strict=True):
        assert (a.draft_tokens.tolist(), a.eos_stop.tolist()) == (b.draft_tokens.tolist(), b.eos_stop.tolist())
    assert any(s.accepted_length.any() for s in one.sequences)
    tables = [tmp_path / f"{name}.json" for name in ("model", "derived", "straight")]
    measured = ["compressions=[fp16]", "reference_context=16", "far_context=40", "repeats=1", "check=false"]
    assert main(["calibrate", *model, "name=here", f"out={tables[0]}", *measured]) == 0
    assert main(["calibrate", *lookup, "name=b", f"out={tables[1]}", f"from={tables[0]}", *measured]) == 0
    assert main(["calibrate", *lookup, "name=c", f"out={tables[2]}", *measured]) == 0
    before, after = (CostTable.load(path).entry("fp16") for path in tables[:2])
    assert before.verify_s == after.verify_s
    assert after.draft_s[0] < before.draft_s[0]
    assert CostTable.load(tables[2]).cost_ratio("fp16") < 1
    capsys.readouterr()
    assert main(["decode", "abcabcabc", *lookup, f"cost.table={tables[1]}", "controller=3", "max_new_tokens=12"]) == 0
    assert 1 <= len(capsys.readouterr().out.strip()) <= 12
    for command in (
        ["profile", f"prompts=[{prompts}]", f"from={with_model}"],
        ["calibrate", "name=x", "from=cpu-2core"],
    ):
        with pytest.raises(SystemExit):
            main([*command, *model, f"out={tmp_path / 'no'}"])
        assert "Expected model.draft=lookup" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["profil"], "Did you mean 'profile'"),
        (["profile"], "Expected prompts=..."),
        (["profile", "prompts=[none.jsonl]", "out=x.parquet"], "found nothing"),
        (["profile", "prompt=[a]"], "Did you mean 'prompts'"),
        (["decode"], "Expected a prompt first"),
        (["decode", "hello", "cost=rtx3090-paper", "controller=/no/such/run"], "speckv train agent=ppo"),
        (["decode", "hello", "cost=cpu-3core"], "Expected cost to be one of"),
        (["decode", "hello", "model=qwen"], "qwen2.5-coder"),
        (["decode", "hello", "cost=rtx3090-paper", "controller=2", "model.target=/no/such.gguf"], "GGUF file"),
        (["merge", "out=a.parquet", "inputs=[none.parquet]"], "found none"),
    ],
)
def test_one_clear_error(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "calibrate" in capsys.readouterr().out
