# SPDX-License-Identifier: Apache-2.0
"""Checks every command and every Python block of README and docs, without running them.

    python -m benchmarks.docs_check

Commands of `speckv` are composed and checked as the command itself does. Options of benchmarks must be in their help.
Scripts, make targets, and names that Python blocks import from SpecKV must exist. Words in capitals (RUN, FILE) are
placeholders.
"""

import ast
import importlib
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from speckv.commands import export, train
from speckv.commands.app import compose_checked
from speckv.commands.main import COMMANDS
from speckv.errors import SpecKVError

ROOT = Path(__file__).resolve().parents[1]
OTHERS = ("cd", "git", "llama-gguf-split", "mkdir", "pip", "pre-commit", "pytest", "source", "tensorboard", "vllm")
"""Programs that are not ours."""
ANYTHING = "*"
FOLLOWED = "# Adding to SpecKV"
"""Heading of the part of a page whose recipes tests/test_tutorials.py follows."""
UNREAD = ("resume", "prompt_file", "init_from", "from")
"""Settings whose value is a file that the check would read."""
BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *```", re.DOTALL | re.MULTILINE)
"""A fenced block of code: `language`, `code`."""
_INLINE = re.compile(r"`((?:speckv|python -m|python train\.py|python evaluate\.py|make) [^`]*)`")
_REDIRECTED = re.compile(r"\s*(?:<|>|\||2>).*$")

logger = logging.getLogger(__name__)


def pages() -> list[Path]:
    """README and every page of docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands_in(text: str) -> Iterator[str]:
    """Command lines in blocks of shell code, and commands with arguments in inline code."""
    for block in BLOCK.finditer(text):
        if block["language"] in ("", "bash", "sh", "console"):
            for line in _whole_lines(block["code"].replace("\\\n", " ")):
                for command in re.sub(r"\s#\s.*", "", line).split("&&"):
                    if command.strip() and not command.strip().startswith("#"):
                        yield command.strip()
    for inline in _INLINE.finditer(BLOCK.sub("", text)):
        command = " ".join(inline[1].split())
        if "..." not in command and "NAME" not in command and len(command.split()) > 2:
            yield command


def _whole_lines(code: str) -> Iterator[str]:
    """Lines, joined where quotes go on over several."""
    held = ""
    for line in code.splitlines():
        held = f"{held} {line}" if held else line
        if all(held.count(quote) % 2 == 0 for quote in "'\""):
            yield held
            held = ""
    if held:
        yield held


def python_in(text: str) -> Iterator[str]:
    """Blocks of Python."""
    for block in BLOCK.finditer(text):
        if block["language"] == "python":
            yield "\n".join(line.removeprefix(block["indent"]) for line in block["code"].splitlines())


def command_fault(command: str) -> str:
    """What is wrong with a command line, or ""."""
    try:
        words = shlex.split(_REDIRECTED.sub("", command))
    except ValueError as error:
        return str(error)
    while words and re.fullmatch(r"\w+=\S*", words[0]):  # environment variables
        words = words[1:]
    if not words:
        return ""
    program, *rest = words
    if program == "speckv":
        return _speckv_fault(rest)
    if program == "python" and rest[:1] in (["train.py"], ["evaluate.py"]):
        return _speckv_fault([rest[0].removesuffix(".py"), *rest[1:]])
    if program == "python" and rest[:1] == ["-m"] and rest[1].startswith("benchmarks."):
        return _benchmark_fault(rest[1], rest[2:])
    if program == "python" and rest and rest[0].endswith(".py"):
        return "" if (ROOT / rest[0]).is_file() or "/" not in rest[0] else f"no script {rest[0]}"
    if program == "make":
        return _make_fault(rest)
    known = program in OTHERS or program.isupper() or program.startswith((".ci/", "./"))
    return "" if known or (program == "python" and rest[:1] == ["-m"]) else f"unknown program {program!r}"


def _speckv_fault(words: list[str]) -> str:
    if not words or words[0].startswith("-"):
        return ""
    name, *rest = words
    if name not in COMMANDS:
        return f"no command {name!r}" if not name.isupper() else ""
    if "--help" in rest or "-h" in rest:
        return ""
    if name == "export":
        return _parser_fault(rest)
    rest = [word for word in rest if word not in ("-m", "--multirun", "--cfg", "job")]
    try:
        module = importlib.import_module(f"speckv.commands.{name}")
        read = any(word.partition("=")[0] in UNREAD for word in rest)
        if hasattr(module, "overrides") and not read:
            rest = module.overrides(rest)
        single = [re.sub(r"=([^\[{'\"]+?),.*$", r"=\1", word) for word in rest]  # the first value of a sweep
        config = compose_checked(name, single)
        if name == "train" and not read and ":" not in " ".join(rest):
            train.settings_from(config)
    except SpecKVError as error:
        return str(error)
    return ""


def _parser_fault(words: list[str]) -> str:
    try:
        export._parser().parse_args(words)
    except SpecKVError as error:
        return str(error)
    return ""


def _benchmark_fault(module: str, words: list[str]) -> str:
    text = _help(module)
    if text is None:
        return f"no module {module}, or it has no --help"
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    if text == ANYTHING:
        return ""
    return "".join(f"{module} has no {option}. " for option in options if option not in text)


@cache
def _help(module: str) -> str | None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode and "No module named" in done.stderr and module not in done.stderr:
        return ANYTHING  # a library that only its own tests install
    return done.stdout if done.returncode == 0 else None


def _make_fault(words: list[str]) -> str:
    targets = [word for word in words if "=" not in word]
    done = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip()


def python_fault(code: str) -> str:
    """What is wrong with a block of Python: syntax, or a name that SpecKV lacks; or ""."""
    try:
        tree = ast.parse(code)
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        wanted = [(module, name) for name in names] if module else [(name, "") for name in names]
        for path, name in wanted:
            if path.partition(".")[0] == "speckv" and (fault := _missing(path, name)):
                return fault
    return ""


def _missing(module: str, name: str) -> str:
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        return str(error)
    if not name or hasattr(found, name):
        return ""
    try:
        importlib.import_module(f"{module}.{name}")
    except ImportError:
        return f"{module} has no {name}"
    return ""


def faults(text: str) -> list[str]:
    """Everything that is wrong on a page."""
    text = text.partition(FOLLOWED)[0]
    found = [(command, command_fault(command)) for command in commands_in(text)]
    found += [(code.strip().splitlines()[0], python_fault(code)) for code in python_in(text) if code.strip()]
    return [f"{what[:120]}: {fault}" for what, fault in found if fault]


def main() -> int:
    """Checks all pages."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    number = 0
    for page in pages():
        text = page.read_text(encoding="utf-8")
        number += len(list(commands_in(text))) + len(list(python_in(text)))
        for fault in faults(text):
            logger.error("%s: %s", page.relative_to(ROOT), fault)
            number = -(10**9)
    if number < 0:
        return 1
    logger.info("%d commands and blocks are right", number)
    return 0


if __name__ == "__main__":
    sys.exit(main())
