# SPDX-License-Identifier: Apache-2.0
"""The two files of an exported policy: a card in JSON, and arrays whose hash the card holds."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from speckv.errors import CheckpointError
from speckv.files import canonical_json, write_atomically
from speckv.types import FloatArray

CARD = "policy.json"
WEIGHTS = "policy.npz"
_LARGEST_CARD = 5_000_000
"""In bytes."""
CARD_KEYS = frozenset(
    {
        "format",
        "format_version",
        "name",
        "environment",
        "activation",
        "gammas",
        "layers",
        "observation_schema",
        "provenance",
        "weights_sha256",
    }
)
"""What every card holds."""


class Stored(Protocol):
    """What every policy has that is stored."""

    @property
    def name(self) -> str:
        """Shown in tables."""

    @property
    def gammas(self) -> tuple[int, ...]:
        """Speculation length that each output stands for."""

    @property
    def weights(self) -> tuple[FloatArray, ...]:
        """One matrix a layer."""

    @property
    def biases(self) -> tuple[FloatArray, ...]:
        """One vector a layer."""

    @property
    def provenance(self) -> Mapping[str, str | int | float]:
        """Where it came from."""


def save_policy(
    folder: Path, policy: Stored, single: Sequence[str], *, kind: str, version: int, environment: str, schema: str
) -> None:
    """Writes a policy's two files, each atomically; the card last, so that it never describes weights to come.

    Args:
        folder: Where to.
        policy: What is stored.
        single: Names of its arrays besides the layers.
        kind: Format.
        version: Format version.
        environment: Id of the environment that it decides in.
        schema: What it reads, as JSON.
    """
    arrays: dict[str, FloatArray] = {name: getattr(policy, name) for name in single}
    for index, (weight, bias) in enumerate(zip(policy.weights, policy.biases, strict=True)):
        arrays |= {f"weight_{index}": weight, f"bias_{index}": bias}
    card = {
        "format": kind,
        "format_version": version,
        "name": policy.name,
        "environment": environment,
        "activation": "tanh",
        "gammas": list(policy.gammas),
        "layers": [list(weight.shape) for weight in policy.weights],
        "observation_schema": json.loads(schema),
        "provenance": dict(policy.provenance),
    }
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{name: a.astype(np.float32) for name, a in arrays.items()})
    data = buffer.getvalue()
    write_atomically(folder / WEIGHTS, data)
    write_atomically(folder / CARD, canonical_json({**card, "weights_sha256": hashlib.sha256(data).hexdigest()}))


def read_fields(folder: Path, card: Mapping[str, object], single: Sequence[str]) -> dict[str, Any]:
    """Everything that `save_policy` was given of a policy, by name of its field.

    Args:
        folder: Holds the weights.
        card: From `read_card`.
        single: Names of its arrays besides the layers.

    Raises:
        CheckpointError: if the weights are missing, damaged or not those of the card.
    """
    arrays = read_weights(folder / WEIGHTS, str(card["weights_sha256"]))
    depth = range(len(cast(Sequence[object], card["layers"])))
    try:
        return {
            "name": str(card["name"]),
            "gammas": tuple(cast(Sequence[int], card["gammas"])),
            "weights": tuple(arrays[f"weight_{index}"] for index in depth),
            "biases": tuple(arrays[f"bias_{index}"] for index in depth),
            "provenance": card["provenance"],
            **{name: arrays[name] for name in single},
        }
    except KeyError as error:
        raise CheckpointError(f"{folder / WEIGHTS}: expected an array {error}, found none. Export again.") from error


def read_format(path: Path) -> object:
    """What a card says it is of.

    Raises:
        CheckpointError: if there is no readable card.
    """
    return _read_json(path).get("format")


def read_network_card(path: Path, kind: str, version: int) -> dict[str, object]:
    """Reads the card of a network that `save_policy` wrote; see `read_card`."""
    card = read_card(path, kind, version, CARD_KEYS)
    _check_card(card, path)
    return card


def read_card(path: Path, kind: str, version: int, keys: Set[str]) -> dict[str, Any]:
    """Reads a card and checks that it has the fields of its format.

    Args:
        path: Of the card.
        kind: Expected format.
        version: Expected format version.
        keys: Expected fields.

    Raises:
        CheckpointError: if it is missing, damaged or of another format or version.
    """
    card = _read_json(path)
    if card.get("format") != kind:
        raise CheckpointError(f'{path}: expected a policy card ("format": "{kind}"). Export the policy again.')
    if card.get("format_version") != version:
        raise CheckpointError(
            f"{path}: expected format version {version}, got {card.get('format_version')!r}. "
            "Export it again with this version of SpecKV."
        )
    if set(card) != keys:
        raise CheckpointError(f"{path}: fields differ from the format: {sorted(set(card) ^ keys)}. Export again.")
    return card


def _read_json(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no number")

    try:
        if path.stat().st_size > _LARGEST_CARD:
            raise CheckpointError(f"{path} is larger than any policy's card. Export the policy again.")
        card = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"Expected an exported policy at {path}, found none. Name a run folder, train one (`python train.py`), or "
            "export one (`python -m speckv export RUN`)."
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}). Export the policy again.") from error
    if not isinstance(card, dict):
        raise CheckpointError(f"{path}: expected a policy card, a JSON object. Export the policy again.")
    return card


def _check_card(card: Mapping[str, object], path: Path) -> None:
    gammas = card["gammas"]
    if not isinstance(gammas, list) or not gammas or any(type(g) is not int or g < 0 for g in gammas):
        raise CheckpointError(f"{path}: expected gammas to list counts of tokens, got {gammas!r}. Export again.")
    if not isinstance(card["layers"], Sequence) or not isinstance(card["provenance"], Mapping):
        raise CheckpointError(f"{path}: layers or provenance are malformed. Export again.")
    if card["activation"] != "tanh":
        raise CheckpointError(f"{path}: expected activation 'tanh', got {card['activation']!r}. Export again.")


def read_described(path: Path, expected_sha256: object) -> bytes:
    """Reads the file that a card describes by its hash.

    Raises:
        CheckpointError: if the file is missing or another than the card's.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"Expected the policy's weights at {path}, found none. Export the policy again."
        ) from error
    if hashlib.sha256(data).hexdigest() != expected_sha256:
        raise CheckpointError(f"{path} is not the file that its card describes (SHA-256 differs). Export both again.")
    return data


def read_weights(path: Path, expected_sha256: str) -> dict[str, FloatArray]:
    """Reads the arrays that a card describes.

    Raises:
        CheckpointError: if the file is missing, damaged or another than the card's.
    """
    data = read_described(path, expected_sha256)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name].astype(np.float32) for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} holds no plain arrays ({error}). Export the policy again.") from error
