# SPDX-License-Identifier: Apache-2.0
"""The prompt of `python -m speckv decode`: an argument, standard input or a file, and never parsed as an override."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from speckv.commands.quoting import quoted
from speckv.errors import ConfigError, DataError

STANDARD_INPUT = "-"
FILE = "prompt_file="
USAGE = 'python -m speckv decode "PROMPT" [key=value ...], with "-" or prompt_file=FILE in place of "PROMPT"'


def overrides(arguments: Sequence[str]) -> list[str]:
    """Turns the first argument, which is the prompt whatever it holds, into an override; the others are overrides.

    Args:
        arguments: The prompt, `-` for standard input or `prompt_file=FILE`; then overrides.

    Raises:
        ConfigError: if there is no prompt, more than one, or it is not valid text.
        DataError: if standard input or the file is missing or not UTF-8.
    """
    if not arguments:
        raise ConfigError(f"Expected a prompt first: {USAGE}.")
    first, *rest = arguments
    _require_one(rest)
    if first.startswith(FILE):
        name = first.removeprefix(FILE)
        return [f"prompt={quoted(_read_file(name))}", f"{FILE}{quoted(name)}", *rest]
    text = _read_standard_input() if first == STANDARD_INPUT else first
    if re.search("[\ud800-\udfff]", text):
        raise ConfigError(
            "Expected a prompt in UTF-8, got bytes that are not. Convert it, or give it as prompt_file=FILE."
        )
    return [f"prompt={quoted(text)}", *rest]


def check_arguments(arguments: Sequence[str], settings: Sequence[str]) -> None:
    """Passes unless the first argument is a setting, in which case the prompt was left out.

    Args:
        arguments: As for `overrides`.
        settings: Names of all settings.

    Raises:
        ConfigError: with both ways to go on.
    """
    found = re.fullmatch(r"[+~]*([\w.@/-]+)=\S*", arguments[0]) if arguments else None
    if found and found[1] in settings and not arguments[0].startswith(FILE):
        raise ConfigError(
            f"Expected a prompt first, got the setting {arguments[0]!r}: {USAGE}. A prompt that reads like a setting "
            "can be given on standard input or in a file."
        )


def _require_one(rest: Sequence[str]) -> None:
    for argument in rest:
        if argument == STANDARD_INPUT or argument.startswith((FILE, "prompt=")):
            raise ConfigError(f"Expected one prompt, got {argument[:100]!r} after the first argument: {USAGE}.")


def _read_file(name: str) -> str:
    try:
        content = Path(name).expanduser().read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"Expected {FILE}FILE to name a readable file, got {name!r}: {reason}.") from error
    return _text(content, name)


def _read_standard_input() -> str:
    stream = sys.stdin
    if stream is None:
        raise DataError(f"Expected a prompt on standard input, which is closed. Use {FILE}FILE.")
    binary = getattr(stream, "buffer", None)
    return _text(binary.read(), "standard input") if binary is not None else stream.read()


def _text(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"Expected a prompt in UTF-8, got byte 0x{content[error.start]:02x} at position {error.start} of {source}. "
            "Convert it, for example with iconv."
        ) from error
