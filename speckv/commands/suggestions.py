# SPDX-License-Identifier: Apache-2.0
"""Suggestions for command lines that are nearly right."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from speckv.errors import ConfigError, nearest

ALIASES = {
    "batch_sizes": "batches",
    "cost_table": "table",
    "ent_coef": "entropy_coef",
    "gamma": "discount",
    "lr": "learning_rate",
    "max_tokens": "max_new_tokens",
    "model": "target",
    "n_envs": "num_envs",
    "n_epochs": "num_epochs",
    "n_seeds": "seeds",
    "n_steps": "num_steps",
    "num_seeds": "seeds",
    "quantization": "compression",
    "steps": "total_steps",
    "timesteps": "total_steps",
    "total_timesteps": "total_steps",
    "trace": "traces",
}
"""Names that other libraries use -> our names, both without the group."""
LISTS = ("batches", "check_gammas", "check_prompts", "compressions", "inputs", "prompts", "runs", "traces", "widths")
"""Settings outside dataclasses that hold a list; a single value is taken as a list of one."""
_PATHS = {"evaluate": "controllers", "profile": "prompts", "merge": "inputs", "vocabulary": "traces"}
"""Command -> the setting that a bare path is probably meant for."""


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A hint with the known setting of the same or an equivalent last part, or else the most similar one, or "".

    >>> did_you_mean("agent.lr", ["agent.learning_rate", "learn", "seed"])
    " Did you mean 'agent.learning_rate'?"
    >>> did_you_mean("total_timesteps", ["agent.total_steps", "seed"])
    " Did you mean 'agent.total_steps'?"
    """
    group, _, last = name.rpartition(".")
    for word in (last, ALIASES.get(last)):
        found = [setting for setting in known if setting.rpartition(".")[2] == word]
        if found:
            best = min(found, key=lambda setting: (setting.rpartition(".")[0] != group, len(setting)))
            return f" Did you mean {best!r}?"
    return nearest(name, list(known))


def require_assignments(command: str, overrides: Sequence[str], choices: Mapping[str, Sequence[str]]) -> None:
    """Raises a ConfigError for an argument without `=`, with the override that was probably meant.

    Args:
        choices: Group -> its names.
    """
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(f"Expected settings as key=value, got {word[:100]!r}.{_meant(command, word, choices)}")


def _meant(command: str, word: str, choices: Mapping[str, Sequence[str]]) -> str:
    if command == "decode":
        return " A prompt of several words needs quotes around it."
    if command in _PATHS and (Path(word).suffix or "/" in word):
        return f" Did you mean {_PATHS[command]}={word}?"
    assignments = {name: f"{group}={name}" for group, names in reversed(list(choices.items())) for name in names}
    hint = nearest(word, list(assignments))
    for name, assignment in assignments.items():
        hint = hint.replace(f"{name!r}", assignment)
    return hint
