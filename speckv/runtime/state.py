# SPDX-License-Identifier: Apache-2.0
"""What a controller consists of besides its class, as plain data and arrays: settings, networks, times, statistics."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from speckv.cost.times import StepTimes
from speckv.errors import CheckpointError, ConfigError, SchemaError
from speckv.observation import SCHEMA, STOPPING_SCHEMA, ObservationSchema
from speckv.runtime.network import Network
from speckv.types import Controller

Arrays = Mapping[str, NDArray[Any]]

MOST_TOKENS = 1024
"""More than any engine drafts; a policy with a larger gamma is damaged."""
_TIMES = ("draft_s", "lag_s", "verify_s", "controller_s")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ControllerState:
    """Everything from which a controller's class makes the same controller again.

    Attributes:
        arrays: By name; networks as "ROLE.weight_0", "ROLE.bias_0" and so on, times as "times.draft_s" and so on.
        schema: The observation that the arrays were fitted to, where its features differ from today's.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)
    compressions: tuple[str, ...] = ()
    schema: ObservationSchema | None = None

    @staticmethod
    def of(
        settings: object = None,
        *,
        networks: Mapping[str, Network] | None = None,
        times: StepTimes | None = None,
        arrays: Arrays | None = None,
    ) -> "ControllerState":
        """Collects the parts of a controller."""
        plain: Any = asdict(settings) if is_dataclass(settings) and not isinstance(settings, type) else settings or {}
        collected: dict[str, NDArray[Any]] = dict(arrays or {})
        for role, network in (networks or {}).items():
            for index, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
                collected |= {f"{role}.weight_{index}": weight, f"{role}.bias_{index}": bias}
        state = ControllerState(settings=plain, arrays=collected)
        return state if times is None else state.with_times(times)

    def with_times(self, times: StepTimes) -> "ControllerState":
        """Returns the state with the times of another machine in place of its own."""
        stored = {f"times.{name}": np.asarray(getattr(times, name)) for name in _TIMES}
        return replace(self, arrays={**self.arrays, **stored}, compressions=times.compressions)

    def array(self, name: str) -> NDArray[Any]:
        """Returns an array."""
        if name not in self.arrays:
            raise CheckpointError(f"Expected an array {name!r}, found {sorted(self.arrays)}. Train again.")
        array = self.arrays[name]
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CheckpointError(f"Expected finite numbers in {name!r}, got NaN or infinity. Train again.")
        return array

    def by_feature(self, name: str, *, fill: float = 0.0) -> NDArray[Any]:
        """Returns an array whose last axis is an observation, with today's features in today's order."""
        array = self.array(name)
        if self.schema is None:
            return array
        stored = replace(self.schema, fields=self.schema.fields[: array.shape[-1]])
        today = SCHEMA if set(stored.names) <= set(SCHEMA.names) else STOPPING_SCHEMA
        moved = np.full((*array.shape[:-1], today.size), fill, array.dtype)
        moved[..., stored.select_from(today)] = array
        return moved

    def require_same_features(self) -> None:
        """Passes if the stored observation has today's features in today's order."""
        if self.schema is not None:
            raise SchemaError(
                f"Expected a controller that was trained on the features {list(SCHEMA.names)}, got one for "
                f"{list(self.schema.names)}. Train it again with this version of SpecKV."
            )

    def network(self, role: str, *, reads_observations: bool = True) -> Network:
        """Returns a network."""
        depth = range(sum(name.startswith(f"{role}.weight_") for name in self.arrays))
        if not depth:
            raise CheckpointError(f"Expected a network {role!r}, found arrays {sorted(self.arrays)}. Train again.")
        weights = [self.array(f"{role}.weight_{index}") for index in depth]
        if reads_observations:
            weights[0] = self.by_feature(f"{role}.weight_0")
        return Network(weights, [self.array(f"{role}.bias_{index}") for index in depth])

    def times(self) -> StepTimes:
        """Returns the times."""
        if not self.compressions:
            raise CheckpointError("Expected the times of a machine, found none. Train again.")
        draft_s, lag_s, verify_s, controller_s = (self.array(f"times.{name}") for name in _TIMES)
        return StepTimes(
            compressions=self.compressions,
            draft_s=draft_s,
            lag_s=lag_s,
            verify_s=verify_s,
            controller_s=float(controller_s),
        )


@runtime_checkable
class Storable(Controller, Protocol):
    """A controller that can be stored."""

    kind: str

    def state(self) -> ControllerState:
        """Returns all that `from_state` needs."""

    @classmethod
    def from_state(cls, state: ControllerState) -> Controller:
        """Makes a controller that decides as the one that gave the state."""


def tokens(value: object) -> int:
    """Returns a stored count of tokens."""
    if type(value) is not int or not 0 <= value <= MOST_TOKENS:
        raise ConfigError(f"expected a count of tokens from 0 to {MOST_TOKENS}, got {json.dumps(value, default=str)}")
    return value
