# SPDX-License-Identifier: Apache-2.0
"""Controllers taken apart into a kind, settings and arrays, and put together again.

Those that every engine can do with are known here. What else there is, other packages offer by an entry point of the
group `speckv.kinds`: an object with `pack(folder) -> Packed | None` and `unpack(packed) -> Controller | None`, each
None where the package does not know it. SpecKV's own agents come that way. A program without that package hands in what
can `unpack` by `offer`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speckv.errors import CheckpointError, ConfigError
from speckv.observation import SCHEMA, STOPPING_SCHEMA, ObservationSchema
from speckv.runtime.acceptance_table import AcceptanceTable
from speckv.runtime.constant import ConstantGamma, ConstantPerCompression
from speckv.runtime.policy import STEP_ENVIRONMENT, STOPPING_ENVIRONMENT, MlpPolicy, PolicyController
from speckv.runtime.recurrent import LstmController, LstmPolicy
from speckv.runtime.stored import AGENT, exported_folder, load_controller
from speckv.types import Controller

GROUP = "speckv.kinds"
MOST_TOKENS = 1024
"""More than any engine drafts; a policy that says so is damaged."""
CONSTANT, PER_COMPRESSION, ACCEPTANCE, MLP, LSTM = "constant", "table", "acceptance_table", "mlp", "lstm"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    """A controller in parts that JSON and a tensor file can hold.

    Attributes:
        kind: What puts it together again.
        settings: Plain data.
        arrays: By name.
    """

    kind: str
    settings: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def pack_controller(controller: Controller) -> Packed | None:
    """Takes a controller apart, or gives None if its kind is not one that is known here."""
    if isinstance(controller, ConstantGamma):
        return Packed(kind=CONSTANT, settings={"gamma": controller.gamma})
    if isinstance(controller, ConstantPerCompression):
        return Packed(kind=PER_COMPRESSION, settings={"gammas": dict(controller.gammas)})
    if isinstance(controller, AcceptanceTable):
        settings = {"edges": list(controller.edges), "gammas": {k: list(v) for k, v in controller.gammas.items()}}
        return Packed(kind=ACCEPTANCE, settings=settings)
    if isinstance(controller, PolicyController | LstmController):
        return _pack_network(controller.policy)
    return None


def _pack_network(policy: MlpPolicy | LstmPolicy) -> Packed:
    single = ["mean", "std"]
    settings: dict[str, Any] = {"gammas": list(policy.gammas), "activation": "tanh", "layers": len(policy.weights)}
    if isinstance(policy, LstmPolicy):
        single += ["input_weight", "state_weight", "gate_bias"]
    else:
        settings["inside_steps"] = policy.environment == STOPPING_ENVIRONMENT
    arrays = {name: getattr(policy, name) for name in single}
    for index, (weight, bias) in enumerate(zip(policy.weights, policy.biases, strict=True)):
        arrays |= {f"weight_{index}": weight, f"bias_{index}": bias}
    return Packed(kind=LSTM if isinstance(policy, LstmPolicy) else MLP, settings=settings, arrays=arrays)


def offer(unpacks: Any) -> None:
    """Adds an object with `unpack` to what installed packages offer; it is asked before them."""
    _handed_in.append(unpacks)


def pack_folder(folder: Path) -> Packed:
    """Takes the controller of a run folder or of a policy's folder apart.

    Raises:
        CheckpointError: if there is none, or no installed package knows its kind.
    """
    if (made_to_travel := exported_folder(folder)) is not None:
        # Late, because that module puts controllers together with this one.
        from speckv.runtime.exported import Policy

        exported = Policy.load(made_to_travel).packed
        assert exported is not None
        return exported
    if not (folder / AGENT).is_file():
        packed = pack_controller(load_controller(folder))
        if packed is not None:
            return packed
    for offered in _offered():
        found: Packed | None = offered.pack(folder)
        if found is not None:
            return found
    raise CheckpointError(
        f"{folder}: no installed package can export its controller (entry point group {GROUP!r}). "
        "SpecKV's own agents can once installed: `pip install -e .` in the checkout."
    )


def unpack(packed: Packed, name: str) -> Controller:
    """Puts a controller together.

    Args:
        packed: Its parts.
        name: Shown in tables.

    Raises:
        CheckpointError: if a part is missing, malformed or absurd, or no installed package knows the kind.
    """
    try:
        controller = _unpack(packed, name)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"A policy of kind {packed.kind!r} has a missing or malformed part ({text}). Export it again."
        ) from error
    controller.name = name
    return controller


def offering(packed: Packed) -> Any | None:
    """What an installed package offers that can put a controller together; None for a kind that is known here.

    Raises:
        CheckpointError: as `unpack`.
    """
    return None if packed.kind in _NATIVE else _offered_for(packed)[0]


def _unpack(packed: Packed, name: str) -> Controller:
    made = _NATIVE.get(packed.kind)
    return _offered_for(packed)[1] if made is None else made(packed.settings, packed.arrays, name)


def _offered_for(packed: Packed) -> tuple[Any, Controller]:
    for offered in chain(_handed_in, _offered()):
        controller: Controller | None = offered.unpack(packed)
        if controller is not None:
            return offered, controller
    raise CheckpointError(
        f"Expected a policy of a kind in {sorted(_NATIVE)} or of an installed package (entry point group {GROUP!r}), "
        f"got {packed.kind!r}. SpecKV's own agents are there once installed: `pip install -e .` in the checkout."
    )


_handed_in: list[Any] = []


def _offered() -> Iterator[Any]:
    for point in entry_points(group=GROUP):
        yield point.load()


def _constant(settings: Mapping[str, Any], _: Mapping[str, Any], name: str) -> Controller:
    return ConstantGamma(_tokens(settings["gamma"]), name=name)


def _per_compression(settings: Mapping[str, Any], _: Mapping[str, Any], name: str) -> Controller:
    return ConstantPerCompression({str(c): _tokens(g) for c, g in settings["gammas"].items()}, name=name)


def _acceptance(settings: Mapping[str, Any], _: Mapping[str, Any], name: str) -> Controller:
    gammas = {str(c): tuple(map(_tokens, row)) for c, row in settings["gammas"].items()}
    return AcceptanceTable([float(edge) for edge in settings["edges"]], gammas, name=name)


def _layers(settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    if settings["activation"] != "tanh":
        raise ConfigError(f"expected activation 'tanh', got {settings['activation']!r}")
    depth, floats = range(int(settings["layers"])), {k: np.asarray(v, np.float32) for k, v in arrays.items()}
    return {
        "gammas": tuple(map(_tokens, settings["gammas"])),
        "weights": tuple(floats.pop(f"weight_{index}") for index in depth),
        "biases": tuple(floats.pop(f"bias_{index}") for index in depth),
        "provenance": {},
        **floats,
    }


def _mlp(settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], name: str) -> Controller:
    inside = bool(settings["inside_steps"])
    schema: ObservationSchema = STOPPING_SCHEMA if inside else SCHEMA
    environment = STOPPING_ENVIRONMENT if inside else STEP_ENVIRONMENT
    return PolicyController.of(
        MlpPolicy(name=name, schema=schema, environment=environment, **_layers(settings, arrays)), name=name
    )


def _lstm(settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], name: str) -> Controller:
    return LstmController(LstmPolicy(name=name, schema=SCHEMA, **_layers(settings, arrays)), name=name)


_NATIVE: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, NDArray[Any]], str], Controller]] = {
    CONSTANT: _constant,
    PER_COMPRESSION: _per_compression,
    ACCEPTANCE: _acceptance,
    MLP: _mlp,
    LSTM: _lstm,
}
"""Kinds that need nothing but NumPy."""


def _tokens(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MOST_TOKENS:
        raise ConfigError(f"expected a count of tokens from 0 to {MOST_TOKENS}, got {json.dumps(value, default=str)}")
    return value
