# SPDX-License-Identifier: Apache-2.0
"""Help texts of the commands, from the comments of the config files and the composed defaults.

In a config file, the first lines of comments describe it; those that are command lines are its examples. A comment
behind a key explains it, and may continue on lines of its own with a deeper indentation.
"""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from speckv.commands.app import CONFIGS, chosen_groups, compose_checked, first_of_sweeps, names_in

WIDTH = 100
OPAQUE = ("study", "search", "paper")
"""Settings that an experiment sets as a whole; one comment in the command's file explains their keys."""
_GLOBAL = "# @package _global_"
_EXAMPLE = re.compile(r"(speckv|python) ")
_KEY = re.compile(r"(?P<indent> *)(?P<key>[\w.]+):(?P<rest>.*)")
_COMMENT = re.compile(r"(?P<indent> *)# (?P<text>.*)")
_MOST_LEFT, _LEAST_LEFT = 32, 10
"""Columns of names; a longer name has a line of its own."""
_OPTIONS = {
    "-m, --multirun": "runs every combination of settings that list several values, and ends with one table; a list of "
    "values without brackets, such as reward=time,throughput, implies it",
    "--cfg job": "prints the composed config as YAML",
    "--hydra-help": "prints the options of Hydra, which composes the config",
}

Rows = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """Explanations in a config file: those of its keys by dotted name."""

    description: str
    examples: tuple[str, ...] = ()
    comments: Mapping[str, str] = field(default_factory=dict)


@cache
def read_config_file(path: Path, prefix: str = "") -> ConfigFile:
    """Reads the comments of a config file and, for keys that have none there, of the files that it begins with."""
    text = path.read_text(encoding="utf-8")
    head: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        head.append(line)
    prefix = "" if _GLOBAL in head else prefix
    lines = [line[2:] for line in head if not line.startswith("# @")]
    comments = {prefix + key: comment for key, comment in _comments(text.splitlines()[len(head) :]) if comment}
    for name in _bases(text):
        base = read_config_file(path.with_name(f"{name}.yaml"), prefix or f"{path.parent.name}.")
        comments = {**base.comments, **comments}
    return ConfigFile(
        description=" ".join(line for line in lines if not _EXAMPLE.match(line)),
        examples=tuple(line for line in lines if _EXAMPLE.match(line)),
        comments=comments,
    )


def _bases(text: str) -> Iterator[str]:
    content = yaml.safe_load(text) or {}
    for entry in content.get("defaults", ()):
        if isinstance(entry, str) and entry != "_self_":
            yield entry.partition("@")[0]


def _comments(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Dotted keys with their comments, "" where there is none."""
    parents: list[tuple[int, str]] = []
    name, comment = "", ""
    for line in lines:
        key, continued = _KEY.fullmatch(line), _COMMENT.fullmatch(line)
        if continued and name and len(continued["indent"]) > parents[-1][0]:
            comment = f"{comment} {continued['text']}".strip()
        elif key:
            if name:
                yield name, comment
            indent = len(key["indent"])
            parents = [*((i, k) for i, k in parents if i < indent), (indent, key["key"])]
            name = ".".join(k for _, k in parents)
            comment = key["rest"].partition(" # ")[2].strip()
    if name:
        yield name, comment


def command_help(command: str, synopsis: str, overrides: Sequence[str]) -> str:
    """The help of a command with a config file, after some overrides, such as the choice of an agent."""
    overrides = first_of_sweeps(overrides)
    config, groups = compose_checked(command, overrides), chosen_groups(command, overrides)
    sweeps = groups.pop("hydra", None) is not None
    own = read_config_file(CONFIGS / f"{command}.yaml")
    files = {group: read_config_file(CONFIGS / group / f"{n}.yaml", f"{group}.") for group, n in groups.items() if n}
    comments = dict(own.comments)
    for found in files.values():
        comments = {**found.comments, **comments}
    sections: list[tuple[str, Rows]] = [("Settings", _rows(config, comments, only_leaves=True))]
    for key in _groups_of_settings(config):
        about = f"{key}={groups[key]}" if groups.get(key) else f"{key} ({comments.get(key, '')})"
        sections.append((f"Settings of {about}", _rows(config[key], comments, f"{key}.")))
    for group, name in groups.items():
        sections.append((f"Choices of {group}, as {group}=NAME; now {name or 'none'}", _choices(group, command)))
    if sweeps:
        sections.append(("Options", list(_OPTIONS.items())))
    return render(f"speckv {command} {synopsis}", own.description, own.examples, sections)


def _groups_of_settings(config: DictConfig) -> list[str]:
    keys = [str(key) for key in config if key not in OPAQUE and not OmegaConf.is_missing(config, key)]
    return [key for key in keys if isinstance(config[key], DictConfig)]


def _rows(config: DictConfig, comments: Mapping[str, str], prefix: str = "", *, only_leaves: bool = False) -> Rows:
    rows: list[tuple[str, str]] = []
    for key in map(str, config):
        name = f"{prefix}{key}"
        missing = OmegaConf.is_missing(config, key)
        value = None if missing else config[key]
        if isinstance(value, DictConfig) and key not in OPAQUE:
            rows += () if only_leaves else _rows(value, comments, f"{name}.")
        else:
            shown = "" if missing else _shown(value)
            rows.append((f"{name}={shown}", f"{'required: ' if missing else ''}{comments.get(name, '')}"))
    return rows


def _shown(value: object) -> str:
    """A value as it is typed on a command line.

    >>> _shown(None), _shown(True), _shown(OmegaConf.create([1, 2])), _shown("")
    ('null', 'true', '[1,2]', '""')
    """
    if isinstance(value, DictConfig):
        return "..."
    if OmegaConf.is_list(value):
        return f"[{','.join(_shown(item) for item in value)}]"  # type: ignore[attr-defined]
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value) if value != "" else '""'


def _choices(group: str, command: str) -> Rows:
    found = {name: read_config_file(CONFIGS / group / f"{name}.yaml", f"{group}.") for name in names_in(group)}
    return [
        (name, file.description)
        for name, file in found.items()
        if all(re.search(rf"\b{command}\b", example) for example in file.examples)
    ]


def render(usage: str, description: str, examples: Sequence[str], sections: Sequence[tuple[str, Rows]]) -> str:
    """Lays out a help text.

    Args:
        sections: Title and rows; a row is a name and its explanation.
    """
    lines = [f"usage: {usage}", "", *textwrap.wrap(description, WIDTH), "", "Examples:"]
    lines += [f"  {example}" for example in examples]
    for title, rows in sections:
        lines += ["", *textwrap.wrap(f"{title}:", WIDTH), *lay_out(rows)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def lay_out(rows: Rows) -> list[str]:
    """Lines with the names on the left and their explanations on the right."""
    widest = max((len(name) for name, _ in rows if len(name) <= _MOST_LEFT), default=0)
    column = 2 + max(widest, _LEAST_LEFT) + 2
    return [line for name, text in rows for line in _row(name, text, column)]


def _row(name: str, text: str, column: int) -> list[str]:
    wrapped = textwrap.wrap(text, WIDTH - column, break_long_words=False, break_on_hyphens=False) or [""]
    left = f"  {name}"
    above = (
        textwrap.wrap(left, WIDTH, subsequent_indent="      ", break_on_hyphens=False) if len(left) > column - 2 else []
    )
    first = [*above, f"{'':{column}}{wrapped[0]}"] if above else [f"{left:{column}}{wrapped[0]}"]
    return [*first, *(f"{'':{column}}{line}" for line in wrapped[1:])]
