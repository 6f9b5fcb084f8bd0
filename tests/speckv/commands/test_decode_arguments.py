# SPDX-License-Identifier: Apache-2.0
"""The prompt of `speckv decode` reaches the config unchanged, from an argument, standard input or a file."""

import io
import os
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from speckv.commands import decode
from speckv.commands.app import compose_checked, plain
from speckv.commands.decode import overrides
from speckv.commands.main import main
from speckv.errors import ConfigError, DataError

PROMPTS = [
    *("x=1; y?", "=?", "prompt=x", "controller=4", "model.draft=lookup", "--help", "~x", "+x", "@x"),
    *("What is ${HOME}?", "${oc.env:HOME}", "\\${x}", "\\\\${x}", "$", "${", "}", "???", "? ??"),
    *('print("a\\nb")', "C:\\new\\table", "\\", "\\\\'", "a\\'b", "it's", "''", '"quoted"'),
    *("", " ", " two  spaces ", "a\nb", "a\r\nb", "tab\t", "\u2028", "ünï 你好 🙂", "null", "1e5", "[a, b]", "{a: b}"),
]


def prompt_of(arguments: list[str]) -> object:
    return plain(compose_checked("decode", overrides(arguments)))["prompt"]


def parsed_prompt(arguments: list[str]) -> object:
    """As Hydra's parser and OmegaConf read it, without the time to compose all configs."""
    parsed = OverridesParser.create().parse_overrides(overrides(arguments))
    (value,) = [override.value() for override in parsed if override.key_or_group == "prompt"]
    return plain(OmegaConf.create({"prompt": value}))["prompt"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_an_argument_is_read_unchanged(prompt: str) -> None:
    assert parsed_prompt([prompt]) == prompt


@pytest.mark.parametrize("prompt", ["prompt=x", "${oc.env:HOME}", "\\\\${x}", "???", "", "a\r\nb", "null", "{a: b}"])
def test_an_argument_arrives_unchanged(prompt: str) -> None:
    config = compose_checked("decode", overrides([prompt]))
    assert config.prompt == prompt
    assert plain(config)["prompt"] == prompt
    assert not OmegaConf.is_missing(config, "prompt")


@settings(max_examples=30, deadline=None)
@given(st.text(st.sampled_from("\\$'\"{}?:.ab \n=,[]"), max_size=12))
def test_any_mixture_of_special_characters_arrives_unchanged(prompt: str) -> None:
    assert parsed_prompt([prompt, "max_new_tokens=7"]) == prompt


class StandardInput(io.TextIOWrapper):
    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="ascii")


def test_standard_input_arrives_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\ufeffa\r\n${x}\t'你\\\n"
    monkeypatch.setattr("sys.stdin", StandardInput(text.encode()))
    assert prompt_of(["-"]) == text
    monkeypatch.setattr("sys.stdin", io.StringIO("as text"))
    assert prompt_of(["-", "max_new_tokens=7"]) == "as text"


@pytest.mark.parametrize("name", ["p.txt", "a b,c=d'${x}[1] ü.txt", "???"])
def test_a_file_arrives_unchanged(name: str, tmp_path: Path) -> None:
    content = "???\r\nx = '${y}'\\\n"
    (tmp_path / name).write_bytes(content.encode())
    config = compose_checked("decode", overrides([f"prompt_file={tmp_path / name}", "controller=4"]))
    assert (config.prompt, config.prompt_file, config.controller) == (content, str(tmp_path / name), 4)


@pytest.mark.parametrize(
    ("content", "match"), [(b"a\xffb", r"byte 0xff at position 1 of .*p\.txt"), (None, "No such file")]
)
def test_a_file_that_is_no_text_is_refused(content: bytes | None, match: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(DataError, match=match):
        overrides([f"prompt_file={tmp_path / 'p.txt'}"])


def test_a_folder_or_an_impossible_name_is_refused(tmp_path: Path) -> None:
    for name in (str(tmp_path), "a\0b", ""):
        with pytest.raises(DataError, match="to name a readable file"):
            overrides([f"prompt_file={name}"])


def test_standard_input_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", StandardInput(b"\xe4\xbd"))
    with pytest.raises(DataError, match="byte 0xe4 at position 0 of standard input"):
        overrides(["-"])
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(DataError, match="closed"):
        overrides(["-"])


@pytest.mark.parametrize("second", ["-", "prompt_file=b.txt", "prompt=b"])
def test_two_prompts_are_refused(second: str) -> None:
    for first in ("a", "-", "prompt_file=a.txt"):
        with pytest.raises(ConfigError, match="Expected one prompt"):
            overrides([first, "controller=4", second])


def test_bytes_that_are_no_text_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([os.fsdecode(b"caf\xe9")], ["a", os.fsdecode(b"controller=\xe9")]):
        with pytest.raises(SystemExit):
            main(["decode", *arguments])
        error = capsys.readouterr().err
        assert "in UTF-8" in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("first", ["controller=4", "model.draft=lookup", "model=smollm2", "prompt=a", "+threads=2"])
def test_a_setting_in_place_of_the_prompt_is_refused(first: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["decode", first])
    error = capsys.readouterr().err
    assert f"Expected a prompt first, got the setting {first!r}" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("first", ["x=1", "controller=4 is what?", "prompt_file=p.txt", "sampling.temp=1", "="])
def test_other_first_arguments_pass(first: str) -> None:
    decode.check([first])


def test_a_long_prompt_leaves_room_for_the_reason_of_an_error() -> None:
    with pytest.raises(ConfigError, match="max_new_tokens=1,2") as caught:
        compose_checked("decode", overrides(["word " * 500, "max_new_tokens=1,2"]))
    assert "Ambiguous value" in str(caught.value)[:400]
