# SPDX-License-Identifier: Apache-2.0
"""Agents for export: taken apart into settings and arrays, and put together again where they decide."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agents.parts import COMPRESSIONS
from agents.restoring import unpack
from speckv.runtime.kinds import Packed
from speckv.runtime.stored import AGENT

__all__ = ["TABLE", "pack", "unpack"]

TABLE = "RESTORE"
"""Where `unpack` looks kinds up, in its module; whoever copies that module for one kind needs no other entry."""


def pack(folder: Path) -> Packed | None:
    """Takes the agent of a run folder apart, or gives None if the folder holds none.

    Raises:
        CheckpointError: if it is damaged.
    """
    if not (folder / AGENT).is_file():
        return None
    from agents.stored import read_agent  # late, because whoever runs a policy needs none of what agents learn with

    kind, settings, parts = read_agent(folder)
    arrays = parts.to_arrays()
    words: Mapping[str, Any] = {}
    if COMPRESSIONS in arrays:
        words = {COMPRESSIONS: [str(name) for name in arrays.pop(COMPRESSIONS)]}
    return Packed(kind=kind, settings={"agent": asdict(settings), **words}, arrays=arrays)
