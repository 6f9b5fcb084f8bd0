# SPDX-License-Identifier: Apache-2.0
"""A search as a config file describes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from speckv.errors import ConfigError

_RANGE = {"low", "high", "log", "step"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """What is tried, and how often.

    Attributes:
        name: Of the search's folder and of its Optuna study.
        space: Setting -> its values: `{low, high}` of numbers, with `log: true` or `step` if wanted, or `{choices}`.
        trials: To try, those of a search that is gone on with included.
        warm_up: Trials that are drawn at random, and are never given up early.
        top: Trials that are trained again with fresh seeds, beside what is shipped.
        final_seeds: Those seeds; the search itself uses `seed` alone.
    """

    name: str
    space: Mapping[str, object]
    trials: int = 40
    warm_up: int = 8
    top: int = 3
    final_seeds: tuple[int, ...] = (101, 102, 103)

    def __post_init__(self) -> None:
        """Checks ranges, and that every setting has values."""
        for name in ("trials", "warm_up", "top"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Expected search.{name} 1 or more, got {getattr(self, name)}.")
        if not self.final_seeds or min(self.final_seeds) < 0:
            raise ConfigError(f"Expected search.final_seeds to list seeds of 0 or more, got {self.final_seeds}.")
        if not self.space:
            raise ConfigError("Expected search.space to name one setting or more, got none.")
        for key, values in self.space.items():
            _check_values(key, values)


def _check_values(key: str, values: object) -> None:
    if isinstance(values, Mapping):
        if set(values) == {"choices"} and isinstance(values["choices"], list | tuple) and values["choices"]:
            return
        if {"low", "high"} <= set(values) <= _RANGE and values["low"] < values["high"]:
            return
    raise ConfigError(f"Expected search.space.{key} to be {{low, high}} or {{choices}}, got {values!r}.")


def suggest(trial: Any, space: Mapping[str, object]) -> list[str]:
    """Draws a value for every setting.

    Args:
        trial: Of Optuna.
        space: Checked, see `SearchSettings`.

    Returns:
        Overrides for `train.py`.
    """
    return [f"{key}={_text(_draw(trial, key, values))}" for key, values in space.items()]


def _draw(trial: Any, key: str, values: Any) -> object:
    if "choices" in values:
        # Optuna keeps numbers and words alone, so lists are drawn by their place.
        return values["choices"][trial.suggest_int(f"{key}#", 0, len(values["choices"]) - 1)]
    low, high = values["low"], values["high"]
    whole = isinstance(low, int) and isinstance(high, int)
    draw = trial.suggest_int if whole else trial.suggest_float
    rest = {"step": values["step"]} if "step" in values else {}
    return draw(key, low, high, log=bool(values.get("log", False)), **rest)


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(str, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
