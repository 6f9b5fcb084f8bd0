# SPDX-License-Identifier: Apache-2.0
"""Free text in overrides: quoting that Hydra and OmegaConf undo exactly, and settings whose value is text."""

import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException

from speckv.errors import ConfigError

VERBATIM = ("notes",)
"""Settings whose value is taken as typed; quotes around all of it and `null` keep their meaning."""

TEXTS = (
    *("name", "out", "output", "runs_dir", "from", "resume", "init_from", "tokenizer", "vocabulary"),
    *("model.name", "model.target", "model.draft", "model.folder", "cost.table", "data.traces"),
)
"""Settings whose value is one name or path; what is not a string in Hydra's grammar is taken as typed."""

MIXED = ("controller", "prompts", "check_prompts", "inputs", "controllers", "traces", "runs")
"""Settings whose value is a path, a number or a list of paths; what Hydra's grammar refuses is taken as typed."""

_MISSING = "???"


def quoted(text: str) -> str:
    r"""Writes a text as the value of an override; the composed config holds exactly the text.

    Hydra drops backslashes in front of a quote, OmegaConf those in front of `${`; both keep all others. OmegaConf
    cannot quote `???`, its mark of a missing value.

    >>> print(quoted("It's ${x}"))
    'It\'s \${x}'
    """
    if text == _MISSING:
        return "${oc.decode:\"'???'\"}"
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    text = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{text}'"


def require_utf8(arguments: Sequence[str]) -> None:
    """Passes if every argument is valid text; Python represents bytes that are not UTF-8 as lone surrogates.

    Raises:
        ConfigError: with the argument.
    """
    for argument in arguments:
        if re.search("[\ud800-\udfff]", argument):
            shown = argument if len(argument) < 100 else f"{argument[:100]}..."
            raise ConfigError(f"Expected arguments in UTF-8, got {shown!a}. Convert it, or set a UTF-8 locale.")


def quote_texts(overrides: Sequence[str], *, sweeps: bool = False) -> list[str]:
    """Quotes the values of text settings that Hydra's grammar would refuse or change.

    Args:
        overrides: As typed; those of other settings stay.
        sweeps: Whether `a,b` means several values.

    Raises:
        ConfigError: if one is not valid text.
    """
    require_utf8(overrides)
    return [_quote_text(override, sweeps) for override in overrides]


def _quote_text(override: str, sweeps: bool) -> str:
    key, _, value = override.partition("=")
    name = key.lstrip("+")
    if not value or name not in (*VERBATIM, *TEXTS, *MIXED):
        return override
    parsed = _parsed(override)
    if parsed is None:
        return f"{key}={_quoted_list(value) if name in MIXED else quoted(value)}"
    if (
        name in MIXED
        or isinstance(parsed._value, QuotedString)
        or value == "null"
        or (sweeps and parsed.is_sweep_override())
    ):
        return override
    if name in VERBATIM or parsed.is_sweep_override() or not isinstance(parsed.value(), str):
        return f"{key}={quoted(value)}"
    return override


def _parsed(override: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def _quoted_list(value: str) -> str:
    """Quotes a path, or the elements of a list of paths; a list with quotes or brackets inside stays."""
    if not value.startswith(("[", "{")):
        return quoted(value)
    inside = value[1:-1]
    if not value.endswith("]") or re.search(r"[\[\]'\"]", inside):
        return value
    return "[" + ",".join(quoted(element.strip()) for element in inside.split(",")) + "]"
