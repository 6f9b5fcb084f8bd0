# SPDX-License-Identifier: Apache-2.0
"""What `speckv decode` writes: the exact text in a pipe; colours and rejected drafts on a terminal."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from rich.console import Console

from speckv.commands.decode import _prepare_output, _Stream
from speckv.decoding import DecodeStep, Engine, RequestContext, generate
from speckv.models import ModelPair, PairConfig, load_pair
from speckv.runtime.constant import ConstantGamma
from speckv.types import StepOutcome
from tests.fakes import save_tiny, tiny_qwen
from tests.fakes_traces import make_cost_table

ROOT = Path(__file__).resolve().parents[3]


class Letters:
    """One token a byte."""

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode(errors="replace")


def a_step(text: str, rejected: str = "") -> DecodeStep:
    """A step that accepted all but its last token."""
    tokens, more = list(text.encode()), list(rejected.encode())
    kept = len(tokens) - 1
    drafted = (*tokens[:kept], *more)
    outcome = StepOutcome(
        gamma=4,
        num_drafted=len(drafted),
        num_accepted=kept,
        num_tested=min(kept + 1, len(drafted)),
        num_emitted=len(tokens),
        draft_signals=np.zeros((len(drafted), 3), np.float32),
        target_entropy=0.0,
        target_confidence=0.0,
        seconds=1.0,
        verify_s=1.0,
    )
    signals = np.zeros((len(tokens), 3), np.float32)
    return DecodeStep(tokens=tuple(tokens), drafted=drafted, target_signals=signals, outcome=outcome)


def streamed(*steps: DecodeStep, show_rejected: bool = True, **console: Any) -> str:
    out = io.StringIO()
    made = Console(file=out, highlight=False, soft_wrap=True, **console)
    stream = _Stream(cast(ModelPair, Letters()), made, show_rejected=show_rejected)
    for step in steps:
        stream.show(step)
    stream.end()
    return out.getvalue()


@pytest.mark.parametrize(
    "text", ["a\tb\r\nc", "x\x07\x08\x1b[31my", "word " * 100, "[bold]x[/] :smile:", "b \n\n", "你🙂\u2028\ufffd"]
)
def test_a_pipe_gets_the_exact_text(text: str) -> None:
    assert streamed(a_step(text, "rejected"), a_step(text)) == f"{text}{text}\n"


TERMINAL: dict[str, Any] = {"force_terminal": True, "color_system": "standard", "width": 20}


def test_a_terminal_gets_colours_and_rejected_drafts() -> None:
    written = streamed(a_step("ab\t", "no"), a_step("\nc"), **TERMINAL)
    assert written == (
        "\x1b[32ma\x1b[0m\x1b[32mb\x1b[0m\x1b[9;31mno\x1b[0m\x1b[1m\t\x1b[0m\x1b[32m\n\x1b[0m\x1b[1mc\x1b[0m\n"
    )
    assert "no" not in streamed(a_step("ab", "no"), show_rejected=False, **TERMINAL)


def test_a_terminal_without_colours_gets_no_rejected_drafts() -> None:
    assert streamed(a_step("ab", "no"), force_terminal=True, color_system=None) == "ab\n"


def test_a_terminal_executes_no_control_character() -> None:
    text = "a\x1b[31mb\rc\x07\x7f\x9bd\te\n" + "word " * 20
    written = streamed(a_step(text, "\x1b[2J"), **TERMINAL)
    styles = r"\x1b\[[0-9;]*m"
    shown = "a^[[31mb^Mc^G^?\\x9bd\te\n" + "word " * 19 + "word^[[2J \n"
    assert re.sub(styles, "", written) == shown


def test_a_pipe_takes_characters_of_any_locale() -> None:
    for encoding in ("ascii", "latin-1"):
        content = io.BytesIO()
        stream = io.TextIOWrapper(content, encoding=encoding, newline="")
        _prepare_output(stream)
        stream.write("你\r\n")
        stream.flush()
        assert content.getvalue() == "你\r\n".encode()


@pytest.mark.slow
def test_a_file_holds_the_answer_alone(tmp_path: Path) -> None:
    """As a process of its own: nothing else may write to standard output."""
    letters = "~\t\r\n\x1b" + "\u00e9你🙂" + "abcdefghijklmnop"
    target = tiny_qwen(0)
    save_tiny(tmp_path / "target", target, letters)
    save_tiny(tmp_path / "draft", tiny_qwen(1, like=target, noise=0.02), letters)
    make_cost_table().save(tmp_path / "fake.json")
    config = PairConfig(target=str(tmp_path / "target"), draft=str(tmp_path / "draft"), dtype="float32", device="cpu")
    pair = load_pair(config)
    engine = Engine(pair.target, None, eos_token_ids=pair.eos_token_ids)
    context = RequestContext(compression="fp16", cost_ratio=0.5)
    prompt = pair.encode("a\tb c")
    alone = generate(engine, prompt, ConstantGamma(0), context=context, max_new_tokens=60)
    settings = [f"model.{name}={getattr(config, name)}" for name in ("target", "draft", "dtype", "device")]
    command = [sys.executable, "-m", "speckv", "decode", "-", *settings, f"cost.table={tmp_path / 'fake.json'}"]
    done = subprocess.run(
        [*command, "controller=3", "max_new_tokens=60"],
        input=b"a\tb c",
        capture_output=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1", "COLUMNS": "10"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == pair.decode(list(alone.tokens)) + "\n"
    assert b"times as fast, the same text" in done.stderr
