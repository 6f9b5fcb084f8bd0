# SPDX-License-Identifier: Apache-2.0
"""Help texts: every key of every config file is explained, and shown with its default."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from speckv import __version__
from speckv.commands import evaluate, report
from speckv.commands import main as program
from speckv.commands.app import (
    CONFIGS,
    chosen_groups,
    compose_checked,
    flat,
    names_in,
    plain,
    setting_names,
    with_lists,
)
from speckv.commands.help import OPAQUE, WIDTH, read_config_file

COMMANDS = sorted(set(program.COMMANDS) - {"export"})
SHOWN_WITH_A_COMMAND = ("agent", "cost", "data", "env", "model", "reward")


def keys(content: object, prefix: str = "") -> list[str]:
    if not isinstance(content, Mapping):
        return [prefix.removesuffix(".")]
    inside = [key for name, value in content.items() if name != "defaults" for key in keys(value, f"{prefix}{name}.")]
    return [*([prefix.removesuffix(".")] if prefix else []), *inside]


def config_files() -> list[Path]:
    groups = [path for group in SHOWN_WITH_A_COMMAND for path in (CONFIGS / group).glob("*.yaml")]
    return sorted([*CONFIGS.glob("*.yaml"), *groups])


@pytest.mark.parametrize("path", config_files(), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_key_of_a_config_file_is_explained(path: Path) -> None:
    group = "" if path.parent == CONFIGS else f"{path.parent.name}."
    found = read_config_file(path, group)
    assert found.description.endswith(".")
    if not group:
        assert any(example.startswith(f"speckv {path.stem}") for example in found.examples)
    content = OmegaConf.to_container(OmegaConf.load(path))
    group = "" if "# @package _global_" in path.read_text(encoding="utf-8") else group
    named = {f"{group}{key}" for key in keys(content) if key} - {"env"}
    assert {key for key in named if not found.comments.get(key)} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_setting_with_its_default_and_every_choice(command: str) -> None:
    text = program.help_of(command)
    shown = dict(re.findall(r"^  ([\w.]+)=(\S*)", text, re.MULTILINE))
    config = plain(compose_checked(command, []), complete=False)
    assert set(shown) == {key for key in flat(config) if key.split(".")[0] not in chosen_or_opaque(config)}
    assert not re.search(r"^  [\w.]+=\S*$(?!\n {10})", text, re.MULTILINE)  # each has an explanation
    assert text.startswith(f"usage: speckv {command}")
    assert max(map(len, text.splitlines())) <= WIDTH
    for group in set(chosen_groups(command)) - {"hydra", "experiment"}:
        assert all(re.search(rf"^  {re.escape(name)} ", text, re.MULTILINE) for name in names_in(group))


@pytest.mark.slow
@pytest.mark.parametrize("group", SHOWN_WITH_A_COMMAND)
def test_help_shows_the_settings_of_every_choice(group: str) -> None:
    for name in names_in(group):
        overrides = [f"{group}={name}", *(["env=live"] if group == "model" else [])]
        shown = re.findall(r"^  ([\w.]+)=\S*(?:\n {10,}|  +)\w", program.help_of("train", overrides), re.MULTILINE)
        assert set(shown) == set(flat(plain(compose_checked("train", overrides), complete=False)))


def chosen_or_opaque(config: Mapping[str, object]) -> set[str]:
    return {key for key in OPAQUE if isinstance(config.get(key), Mapping)}


def test_help_follows_a_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["train", "agent=dqn,ppo", "env=live", "--help"]) == 0
    text = capsys.readouterr().out
    assert "agent.buffer_size=200000" in text
    assert "agent.clip_range" not in text
    assert "live.requests=40" in text
    assert "model.dtype=auto" in text


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["a prompt", "--help"], ["controller=4", "-h"]])
def test_an_option_for_help_is_no_prompt(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["decode", *arguments]) == 0
    assert capsys.readouterr().out.startswith('usage: speckv decode "PROMPT"')


def test_a_prompt_may_look_like_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["decode", "--", "--help", "controller=/no/such/run"])
    assert "Expected a run folder" in capsys.readouterr().err


def test_export_explains_its_options_alike() -> None:
    text = program.help_of("export")
    assert text.startswith("usage: speckv export RUN")
    assert all(f"  {name} " in text for name in ("RUN", "--to TARGET", "--out OUT", "hf-custom-generate", "vllm"))
    assert max(map(len, text.splitlines())) <= WIDTH


def test_the_program_lists_its_commands_and_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([]) == program.main(["--help"]) == program.main(["--version"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\w+", text, re.MULTILINE) for name in program.COMMANDS)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text.endswith(f"speckv {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "Did you mean 'train'"),
        (["agent=ppo"], "Did you mean `speckv train agent=ppo`"),
        (["train", "ppo"], "Did you mean agent=ppo?"),
        (["train", "agent.lr=0.1"], "Did you mean 'agent.learning_rate'"),
        (["train", "total_timesteps=5"], "Did you mean 'agent.total_steps'"),
        (["train", "agent.gamma=0.9"], "Did you mean 'agent.discount'"),
        (["evaluate", "runs/my-run"], "Did you mean controllers=runs/my-run?"),
        (["decode", "one", "two"], "needs quotes"),
        (["export"], "required: run"),
    ],
)
def test_what_was_probably_meant(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "override"),
    [
        ("profile", "prompts=a.jsonl"),
        ("merge", "inputs=a.parquet"),
        ("vocabulary", "traces=shipped"),
        ("report", "runs=r"),
    ],
)
def test_one_value_is_a_list_of_one(command: str, override: str) -> None:
    key, _, value = override.partition("=")
    assert with_lists(compose_checked(command, [override]))[key] == [value]


def test_runs_of_a_report_may_be_a_setting() -> None:
    overrides = report.overrides(["runs=a", "prompts_per_task=1"])
    assert with_lists(compose_checked("report", overrides)).runs == ["a"]
    assert evaluate.settings_from(compose_checked("evaluate", ["controllers=a", "agents=svip"])).controllers == ("a",)


def test_an_existing_path_is_taken_as_typed(tmp_path: Path) -> None:
    run = tmp_path / "agent=ppo,reward=time"
    run.mkdir()
    assert compose_checked("evaluate", [f"controllers={run}"]).controllers == str(run)
    assert "controllers" in setting_names("evaluate")
