# SPDX-License-Identifier: Apache-2.0
"""Names, paths and notes reach the configs as typed, whatever Hydra's grammar makes of them."""

from pathlib import Path

import pytest

from speckv.commands.app import compose_checked, plain, prepare, quote_texts
from speckv.commands.main import main
from speckv.commands.report import overrides
from speckv.errors import ConfigError
from tests.fakes_traces import make_cost_table


@pytest.mark.parametrize("notes", ["a, b", "it's", 'say "x"', "k=v", "${x}", "???", "[x]", "123", "true", "ünï; 50%"])
def test_notes_are_taken_as_typed(notes: str) -> None:
    assert plain(compose_checked("calibrate", [f"notes={notes}", "name=x"]))["notes"] == notes


@pytest.mark.parametrize(("typed", "expected"), [("'a, b'", "a, b"), ('"x=1"', "x=1"), ("null", None), ("", "")])
def test_quotes_and_null_keep_their_meaning(typed: str, expected: str | None) -> None:
    assert compose_checked("calibrate", [f"notes={typed}"]).notes == expected


@pytest.mark.parametrize("path", ["a=b", "ü.json", "~/x", "a,b", "x[0]", "(x)", "a;b", "it's", "12", "true", "{a}"])
def test_paths_are_taken_as_typed(path: str) -> None:
    config = compose_checked("calibrate", [f"out={path}", f"model.target={path}"])
    assert (config.out, config.model.target) == (path, path)


def test_interpolations_in_paths_are_resolved() -> None:
    assert compose_checked("calibrate", ["name=here", "out=${name}-1.json"]).out == "here-1.json"


def test_lists_of_paths_are_taken_as_typed() -> None:
    config = compose_checked("merge", ["inputs=[runs/a=1.parquet, ü.parquet]"])
    assert list(config.inputs) == ["runs/a=1.parquet", "ü.parquet"]
    assert list(compose_checked("merge", ["inputs=['a,b',c]"]).inputs) == ["a,b", "c"]
    assert compose_checked("decode", ["controller=runs/a=1"]).controller == "runs/a=1"
    assert compose_checked("decode", ["controller=4"]).controller == 4
    with pytest.raises(ConfigError, match="Cannot compose"):
        compose_checked("merge", ["inputs=[it's]"])


def test_other_settings_keep_the_grammar() -> None:
    assert quote_texts(["gamma=a,b", "agent.x=[1]", "notes", "~out"]) == ["gamma=a,b", "agent.x=[1]", "notes", "~out"]


def test_train_quotes_what_hydra_refuses_and_sweeps_as_before() -> None:
    seen: list[str] = []
    arguments = ["output=runs/ü=1", "seed=1,2", "runs_dir=a,b"]
    prepared = prepare(arguments, "train", lambda config, _: seen.append(f"{config.output} {config.runs_dir}"))
    assert prepared == ["output='runs/ü=1'", "seed=1,2", "runs_dir=a,b", "--multirun"]
    assert seen == ["runs/ü=1 a", "runs/ü=1 b"]
    assert prepare(["--cfg", "job", "output=ü"], "train", lambda *_: None) == ["--cfg", "job", "output='ü'"]


def test_a_run_folder_of_the_report_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["a=1", "back\\slash", "it's ${x}"]
    for name in names:
        Path(name).mkdir()
    config = compose_checked("report", overrides([*names, "prompts_per_task=2"]))
    assert list(config.runs) == names
    assert config.prompts_per_task == 2


def test_an_interpolation_without_a_value_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_cost_table().save(tmp_path / "fake.json")
    with pytest.raises(SystemExit):
        main(["decode", "abc", f"cost.table={tmp_path / 'fake.json'}", "model.target=${nothing}"])
    error = capsys.readouterr().err
    assert "Cannot resolve the config: Interpolation key 'nothing'" in error
    assert error.count("\n") == 1
