# SPDX-License-Identifier: Apache-2.0
"""Fills settings from plain data and checks them."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from speckv.errors import ConfigError, nearest
from speckv.types import GAMMA_MAX

T = TypeVar("T")
SHARE = (0, 1)
COUNT = (1, math.inf)
FROM_ZERO = (0, math.inf)


def require_ranges(settings: object, **ranges: tuple[float, float]) -> None:
    """Passes if these of an agent's settings are in their closed ranges.

    >>> require_ranges(dataclasses.make_dataclass("Rule", ["start"])(0), start=COUNT)
    Traceback (most recent call last):
    speckv.errors.ConfigError: Expected agent.start 1 or more, got 0.
    """
    for name, (least, most) in ranges.items():
        value = getattr(settings, name)
        if not least <= value <= most:
            wanted = f"{least} or more" if most == math.inf else f"from {least} to {most}"
            raise ConfigError(f"Expected agent.{name} {wanted}, got {value}.")


def require_gammas(gammas: Sequence[int], name: str) -> None:
    """Passes if a setting of this name lists speculation lengths in ascending order."""
    if not gammas or list(gammas) != sorted(set(gammas)) or gammas[0] < 0 or gammas[-1] > GAMMA_MAX:
        raise ConfigError(f"Expected agent.{name} ascending from 0 to {GAMMA_MAX} at most, got {gammas}.")


def require_layers(settings: Any) -> None:
    """Passes if `hidden` lists at least one layer."""
    if not settings.hidden or min(settings.hidden) < 1:
        raise ConfigError(f"Expected agent.hidden to list at least one layer of 1 unit or more, got {settings.hidden}.")


def require_above_zero(settings: object, *names: str) -> None:
    """Passes if these of an agent's settings are above zero."""
    for name in names:
        if not getattr(settings, name) > 0:
            raise ConfigError(f"Expected agent.{name} above 0, got {getattr(settings, name)}.")


def build_settings(cls: type[T], content: Mapping[str, object], where: str = "") -> T:
    """Fills a dataclass from plain data; a ConfigError names a key that is unknown, missing or of the wrong type.

    >>> Clock = dataclasses.make_dataclass("Clock", [("table", str), ("batch", int, 1)])
    >>> build_settings(Clock, {"tabel": "cpu-2core"})
    Traceback (most recent call last):
    speckv.errors.ConfigError: Unknown setting 'tabel'; known here: ['table', 'batch']. Did you mean 'table'?
    """
    prefix = f"{where}." if where else ""
    assert dataclasses.is_dataclass(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    for key in content:
        if key not in known:
            raise ConfigError(f"Unknown setting {prefix + str(key)!r}; known here: {known}.{nearest(str(key), known)}")
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        optional = item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING
        if item.name not in content and not optional:
            raise ConfigError(f"Expected a value for {prefix + item.name!r}, found none.")
    values = {name: _convert(hints[name], value, prefix + name) for name, value in content.items()}
    return typing.cast(T, cls(**values))


def _convert(hint: object, value: object, where: str) -> object:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"Expected {where} to be a group of settings, got {value!r}.")
        return build_settings(hint, value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _convert_union(arguments, value, where)
    if origin is tuple and arguments[0] is str and isinstance(value, str):
        return (value,)  # one name where a list of names is taken
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], v, f"{where}[{k}]") for k, v in enumerate(value))
    if origin is not None and isinstance(value, Mapping):
        return dict(value)
    if hint is float and type(value) is int:
        return float(value)
    if hint is not type(value):
        name = hint.__name__ if isinstance(hint, type) and origin is None else str(hint)
        raise ConfigError(f"Expected {where} to be of type {name}, got {value!r}.")
    return value


def _convert_union(options: tuple[object, ...], value: object, where: str) -> object:
    if value is None and type(None) in options:
        return None
    groups = [option for option in options if dataclasses.is_dataclass(option)]
    if isinstance(value, Mapping) and len(groups) == 1:
        return _convert(groups[0], value, where)
    problems: list[ConfigError] = []
    for option in options:
        try:
            return _convert(option, value, where)
        except ConfigError as error:
            problems.append(error)
    wanted = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise ConfigError(f"Expected {where} to be of type {wanted}, got {value!r}.") from problems[0]
