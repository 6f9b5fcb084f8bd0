# SPDX-License-Identifier: Apache-2.0
"""The command line on a tiny pair: what works, and one line with status 2 for what does not."""

import json
from pathlib import Path

import pytest

from speckv.commands.decode import overrides
from speckv.commands.main import main
from speckv.cost import CostTable
from speckv.traces import TraceSet
from tests.fakes import save_tiny, tiny_qwen


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
    assert len("".join(streamed.split())) >= 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["profil"], "Did you mean 'profile'"),
        (["profile"], "Expected prompts=..."),
        (["profile", "prompts=[none.jsonl]", "out=x.parquet"], "found nothing"),
        (["profile", "prompt=[a]"], "Did you mean 'prompts'"),
        (["decode"], "Expected a prompt first"),
        (["decode", "hello", "cost=rtx3090-paper", "controller=/no/such/run"], "train.py agent=ppo"),
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


def test_a_prompt_with_quotes_and_equal_signs() -> None:
    assert overrides(["It's a = b", "cost=x"]) == [r"prompt='It\'s a = b'", "cost=x"]
