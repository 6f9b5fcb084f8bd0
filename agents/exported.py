# SPDX-License-Identifier: Apache-2.0
"""Agents for export: taken apart into settings and arrays, and put together again where they decide."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from agents.parts import COMPRESSIONS, Parts
from agents.registry import AGENTS, agent_settings
from agents.stored import CARD, read_agent
from speckv.errors import CheckpointError, ConfigError
from speckv.runtime.kinds import Packed
from speckv.types import Controller


def pack(folder: Path) -> Packed | None:
    """Takes the agent of a run folder apart, or gives None if the folder holds none.

    Raises:
        CheckpointError: if it is damaged.
    """
    if not (folder / CARD).is_file():
        return None
    kind, settings, parts = read_agent(folder)
    arrays = parts.to_arrays()
    words: Mapping[str, Any] = {}
    if COMPRESSIONS in arrays:
        words = {COMPRESSIONS: [str(name) for name in arrays.pop(COMPRESSIONS)]}
    return Packed(kind=kind, settings={"agent": asdict(settings), **words}, arrays=arrays)


def unpack(packed: Packed) -> Controller | None:
    """Puts an agent together, or gives None if there is none of that kind.

    Raises:
        CheckpointError: if a part is missing or malformed.
    """
    agent = AGENTS.get(packed.kind)
    if agent is None or agent.restore is None:
        return None
    try:
        _, settings = agent_settings({**packed.settings["agent"], "name": packed.kind})
    except ConfigError as error:
        raise CheckpointError(f"{error} Export the policy again.") from error
    arrays = dict(packed.arrays)
    if COMPRESSIONS in packed.settings:
        arrays[COMPRESSIONS] = np.array(packed.settings[COMPRESSIONS])
    return agent.restore(settings, Parts.from_arrays(arrays))
