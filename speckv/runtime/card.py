# SPDX-License-Identifier: Apache-2.0
"""The two files of an exported policy: a card in JSON, and arrays whose hash the card holds."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import numpy as np

from speckv.errors import CheckpointError
from speckv.files import canonical_json, write_atomically
from speckv.types import FloatArray

CARD = "policy.json"
WEIGHTS = "policy.npz"
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


def write_policy(folder: Path, card: Mapping[str, object], arrays: Mapping[str, FloatArray]) -> None:
    """Writes the two files, each atomically; the card last, so that it never describes weights to come."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{name: a.astype(np.float32) for name, a in arrays.items()})
    data = buffer.getvalue()
    write_atomically(folder / WEIGHTS, data)
    write_atomically(folder / CARD, canonical_json({**card, "weights_sha256": hashlib.sha256(data).hexdigest()}))


def read_format(path: Path) -> object:
    """What a card says it is of.

    Raises:
        CheckpointError: if there is no readable card.
    """
    return _read_json(path).get("format")


def read_card(path: Path, kind: str, version: int, keys: Set[str]) -> dict[str, object]:
    """Reads a card and checks its fields.

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
            f"{path}: expected policy format version {version}, got {card.get('format_version')}. "
            "Export it again with this version of SpecKV."
        )
    if set(card) != keys:
        raise CheckpointError(f"{path}: fields differ from the format: {sorted(set(card) ^ keys)}. Export again.")
    _check_card(card, path)
    return card


def _read_json(path: Path) -> dict[str, object]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"Expected an exported policy at {path}, found none. Name a run folder or train one: `python train.py`."
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


def read_weights(path: Path, expected_sha256: str) -> dict[str, FloatArray]:
    """Reads the arrays that a card describes.

    Raises:
        CheckpointError: if the file is missing, damaged or another than the card's.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"Expected the policy's weights at {path}, found none. Export the policy again."
        ) from error
    if hashlib.sha256(data).hexdigest() != expected_sha256:
        raise CheckpointError(f"{path} is not the file that its card describes (SHA-256 differs). Export both again.")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name].astype(np.float32) for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} holds no plain arrays ({error}). Export the policy again.") from error
