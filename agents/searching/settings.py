# SPDX-License-Identifier: Apache-2.0
"""A search as a config file describes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from speckv.errors import ConfigError

_RANGE = {"low", "high", "log", "step"}
_GROUND = ("cost", "data", "eval", "learn", "live", "model", "output", "runs_dir", "search", "seed", "seeds", "study")
"""Settings that say what trials are judged on, and where they go: the same for all."""


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
        seeds = self.final_seeds
        if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise ConfigError(f"Expected search.final_seeds to list seeds of 0 or more, each once, got {seeds}.")
        if not self.space:
            raise ConfigError("Expected search.space to name one setting or more, got none.")
        for key, values in self.space.items():
            if key.lstrip("+~").split(".")[0] in _GROUND:
                raise ConfigError(
                    f"Expected search.space to leave alone what trials are judged on and where they go, got {key}."
                )
            _check_values(key, values)

    def example(self) -> list[str]:
        """The first values of all settings, as overrides: enough to see whether there are such settings."""
        firsts = {
            k: v["choices"][0] if "choices" in v else v["low"] for k, v in self.space.items() if isinstance(v, dict)
        }
        return [f"{key}={_text(value)}" for key, value in firsts.items()]


def _check_values(key: str, values: object) -> None:
    if isinstance(values, Mapping):
        if set(values) == {"choices"} and isinstance(values["choices"], list | tuple) and values["choices"]:
            return
        if {"low", "high"} <= set(values) <= _RANGE and _is_range(values):
            return
    raise ConfigError(
        f"Expected search.space.{key} to be {{choices}}, or {{low, high}} of numbers with low < high, and beside them "
        f"`log: true` where both are above 0, or a `step` above 0, got {values!r}."
    )


def _is_range(values: Mapping[str, Any]) -> bool:
    low, high, step, log = values["low"], values["high"], values.get("step", 1), values.get("log", False)
    if not all(type(number) in (int, float) for number in (low, high, step)) or not (low < high and step > 0):
        return False
    whole = type(low) is type(high) is int
    return not (log and ("step" in values or low <= 0)) and not (whole and type(step) is not int)


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
    drawn = draw(key, low, high, log=bool(values.get("log", False)), **rest)
    # Four digits are enough to try, but may lie outside: 0.99996 would be 1.
    return drawn if whole else min(max(float(f"{drawn:.4g}"), low), high)


def _text(value: object) -> str:
    """A value as Hydra reads it.

    >>> _text([None, True, 1e-05, 64])
    '[null,true,1e-05,64]'
    """
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)
