# SPDX-License-Identifier: Apache-2.0
"""Controllers of the user's own, named as "module:Class" wherever an agent is named.

The class needs `act(observation)`, which returns gamma before a decode step. It may have:

- `go_on(observation)`: after each drafted token, whether to draft another; `act` then returns the most tokens;
- `reset()`: begins a request;
- `learn(outcome)`: gets a `StepOutcome` after each step. With a class attribute `learns = True` it is an online
  learner, trained on the train prompts once, request after request;
- `act_batch(observations)` and `go_on_batch(observations)`: the same for many requests at once, which is faster; for
  controllers without memory only;
- `make(data, **settings)`: a class method that makes it from `TrainingData`, in place of `Class(**settings)`;
- `get_arrays()` and `set_arrays(arrays)`: what it learned, as NumPy arrays by name. Without them it is stored as its
  settings alone.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from speckv.errors import ConfigError
from speckv.importing import import_named, require_importable
from speckv.observation import SCHEMA, STOPPING_SCHEMA
from speckv.runtime.state import ControllerState
from speckv.types import BoolArray, FloatArray, IntArray, StepOutcome

if TYPE_CHECKING:
    from speckv.agents.registry import TrainingData


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSettings:
    """Settings of a user's controller, as they are given to its class."""

    values: Mapping[str, Any] = field(default_factory=dict)


def own_class(path: str) -> type[Any]:
    """Imports a user's class; a ConfigError names the method that it lacks."""
    found = import_named(path)
    if not isinstance(found, type):
        raise ConfigError(f"Expected {path!r} to name a class, got {found!r}.")
    if not callable(getattr(found, "act", None)):
        raise ConfigError(
            f"Expected {path!r} to have a method act(self, observation) that returns gamma, found none. "
            "docs/extending.md shows a whole one."
        )
    if getattr(found, "learns", False) and not callable(getattr(found, "learn", None)):
        raise ConfigError(f"Expected {path!r}, with learns = True, to have a method learn(self, outcome), found none.")
    return found


def own_controller_class(path: str) -> "type[OwnController]":
    """The adapter that a user's class needs."""
    return OwnStopping if callable(getattr(own_class(path), "go_on", None)) else OwnController


class OwnController:
    """A user's controller with all methods of a `Controller`."""

    kind: ClassVar[str] = "own"
    settings_class = OwnSettings

    def __init__(self, path: str, settings: OwnSettings, user: Any) -> None:
        self.path, self.settings, self.user = path, settings, user
        self.name = str(getattr(user, "name", path.partition(":")[2]))
        self.charges_decision = bool(getattr(user, "charges_decision", True))
        if getattr(user, "learns", False):
            self.learns = True

    @classmethod
    def create(cls, path: str, settings: OwnSettings, data: "TrainingData | None" = None) -> "OwnController":
        """Makes the user's object; a ConfigError if its class refuses the settings."""
        kind = own_class(path)
        try:
            if data is not None and hasattr(kind, "make"):
                user = kind.make(data, **settings.values)
            else:
                user = kind(**settings.values)
        except TypeError as error:
            raise ConfigError(f"Expected settings that {path} takes, got {dict(settings.values)}: {error}.") from error
        return own_controller_class(path)(path, settings, user)

    def state(self) -> ControllerState:
        """Returns the class's name, the settings, and the arrays of `get_arrays`."""
        arrays = self.user.get_arrays() if hasattr(self.user, "get_arrays") else {}
        return ControllerState.of({"class": self.path, "values": dict(self.settings.values)}, arrays=arrays)

    @classmethod
    def from_state(cls, state: ControllerState) -> "OwnController":
        """Makes the stored controller; its module must be importable."""
        settings = OwnSettings(values=state.settings["values"])
        path = str(state.settings["class"])
        require_importable(path)
        made = cls.create(path, settings)
        if state.arrays:
            made.user.set_arrays(dict(state.arrays))
        return made

    def require_storable(self) -> None:
        """Refuses a learner whose learned state cannot be stored."""
        if hasattr(self, "learns") and not hasattr(self.user, "get_arrays"):
            raise ConfigError(
                f"Expected {self.path}, which learns, to have get_arrays() and set_arrays(arrays), so that what it "
                "learned can be stored; found none. `speckv evaluate agents=` compares it without storing."
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> "OwnController":
        """Copies the user's object."""
        return type(self)(self.path, self.settings, copy.deepcopy(self.user, memo))

    def reset(self) -> None:
        """Begins a request."""
        if hasattr(self.user, "reset"):
            self.user.reset()

    def act(self, observation: FloatArray) -> int:
        """Returns gamma."""
        return self._checked(self.user.act(observation), "act")

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns gamma for each row."""
        if hasattr(self.user, "act_batch"):
            return np.asarray(self.user.act_batch(observations), np.int64)
        return np.array([self.act(row) for row in observations], np.int64)

    def learn(self, outcome: StepOutcome) -> None:
        """Passes an outcome on."""
        if hasattr(self.user, "learn") and getattr(self, "learns", True):
            self.user.learn(outcome)

    def _checked(self, value: Any, method: str) -> int:
        if isinstance(value, bool | np.bool_) or int(value) != value or value < 0:
            raise ConfigError(f"Expected {self.path}.{method} to return a whole number from 0 up, got {value!r}.")
        return int(value)


class OwnStopping(OwnController):
    """The same for a controller that also decides after each drafted token."""

    kind: ClassVar[str] = "own_stopping"

    def go_on(self, observation: FloatArray) -> bool:
        """Returns whether to draft another token."""
        return bool(self.user.go_on(observation))

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """Returns the same for each row."""
        if hasattr(self.user, "go_on_batch"):
            return np.asarray(self.user.go_on_batch(observations), np.bool_)
        return np.array([self.go_on(row) for row in observations], np.bool_)


def adapt(user: Any) -> OwnController:
    """Makes a `Controller` of an object of the user's own, for `speckv.evaluation.compare`."""
    kind = OwnStopping if callable(getattr(user, "go_on", None)) else OwnController
    return kind(f"{type(user).__module__}:{type(user).__qualname__}", OwnSettings(), user)


KINDS = {kind.kind: kind for kind in (OwnController, OwnStopping)}


def feature(name: str) -> int:
    """Column of a feature in the observations of `act`, and of `go_on`, which have more.

    >>> feature("acceptance_ema"), feature("token_confidence")
    (7, 19)
    """
    return SCHEMA.index(name) if name in SCHEMA.names else STOPPING_SCHEMA.index(name)
