# SPDX-License-Identifier: Apache-2.0
"""Agents on disk: their name and settings as JSON, what they learned or were told as arrays."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agents.parts import Parts
from agents.registry import AGENTS, agent_settings
from speckv.errors import CheckpointError, ConfigError
from speckv.files import canonical_json, write_atomically
from speckv.observation import STOPPING_SCHEMA
from speckv.runtime import stored
from speckv.types import Controller

CARD = stored.AGENT
ARRAYS = "agent.npz"
FORMAT = "speckv-agent"
FORMAT_VERSION = 1


def save_controller(folder: Path, name: str, settings: Any, controller: Controller) -> None:
    """Writes a controller that `load_controller` reads back, the card last.

    Args:
        folder: Of the run.
        name: Of the agent.
        settings: It was made with.
        controller: From `make_controller`.
    """
    agent = AGENTS[name]
    if agent.restore is None:
        assert isinstance(controller, stored.Rule)
        stored.save_rule(folder, controller)
        return
    data = agent.parts(controller).to_bytes()
    card = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "agent": {"name": name, **asdict(settings)},
        "observation_sha256": STOPPING_SCHEMA.sha256(),
        "arrays_sha256": hashlib.sha256(data).hexdigest(),
    }
    write_atomically(folder / ARRAYS, data)
    write_atomically(folder / CARD, canonical_json(card))


def has_controller(path: Path) -> bool:
    """Whether `load_controller` would find one."""
    return (path / CARD).is_file() or stored.has_controller(path)


def load_controller(path: Path | str, *, name: str | None = None) -> Controller:
    """Loads a controller from a run folder or from an exported policy's folder.

    Args:
        path: The folder.
        name: Shown in tables in place of the controller's own.

    Raises:
        CheckpointError: if there is none, or it is damaged or was trained on another observation.
        SchemaError: if an exported policy was trained on another observation.
    """
    path = Path(path)
    if not (path / CARD).is_file():
        return stored.load_controller(path, name=name)
    kind, settings, parts = read_agent(path)
    restore = AGENTS[kind].restore
    if restore is None:
        raise CheckpointError(f"{path / CARD}: an agent {kind!r} is not stored this way. Train again.")
    controller = restore(settings, parts)
    controller.name = name or controller.name
    return controller


def read_agent(path: Path) -> tuple[str, Any, Parts]:
    """Reads what `save_controller` wrote of an agent: its name, its settings, and what it learned or was told.

    Raises:
        CheckpointError: if the folder holds none, or it is damaged or was trained on another observation.
    """
    card = _read_card(path / CARD)
    try:
        data = (path / ARRAYS).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"Expected the controller's arrays at {path / ARRAYS}, found none. Train again."
        ) from error
    if hashlib.sha256(data).hexdigest() != card["arrays_sha256"]:
        raise CheckpointError(f"{path / ARRAYS} is not the file that its card describes. Train again.")
    try:
        kind, settings = agent_settings(card["agent"])
    except ConfigError as error:
        raise CheckpointError(f"{path / CARD}: {error} Train again.") from error
    return kind, settings, Parts.from_bytes(data)


def _read_card(path: Path) -> Mapping[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"Expected a run folder with an agent's {CARD} at {path.parent}, found none.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}). Train again.") from error
    if not isinstance(card, dict) or (card.get("format"), card.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise CheckpointError(f'{path}: expected "format": "{FORMAT}", version {FORMAT_VERSION}. Train again.')
    if not isinstance(card.get("agent"), dict) or not isinstance(card.get("arrays_sha256"), str):
        raise CheckpointError(f"{path}: expected an agent and the hash of its arrays. Train again.")
    if card.get("observation_sha256") != STOPPING_SCHEMA.sha256():
        raise CheckpointError(f"{path}: expected the observation of this version of SpecKV, got another. Train again.")
    return card
