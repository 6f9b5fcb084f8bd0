# SPDX-License-Identifier: Apache-2.0
"""Agents on recordings that are shallower than `GAMMA_MAX`: what was not recorded cannot be drafted."""

from dataclasses import fields, replace
from typing import Any

from speckv.errors import ConfigError
from speckv.types import GAMMA_MAX

UNBOUNDED = ("gammatune", "transformers_heuristic")
"""Agents whose gamma grows up to `GAMMA_MAX`; none of their settings limits it."""
_LIMITS = ("gamma_max", "n_max")
_CHOICES = ("arms", "candidates", "gammas")


def within_depth(name: str, settings: Any, depth: int) -> Any:
    """Limits an agent's settings to the depth of the recordings.

    Args:
        name: Of the agent.
        settings: Checked.
        depth: `gamma_max` of the recordings, in tokens.

    Returns:
        Settings whose longest draft is at most `depth`.

    Raises:
        ConfigError: if the agent cannot be limited, or no speculation length is left.
    """
    if depth >= GAMMA_MAX:
        return settings
    gamma = getattr(settings, "gamma", 0) if name == "fixed" else 0
    if name in UNBOUNDED or gamma > depth:
        longest = gamma or GAMMA_MAX
        raise ConfigError(
            f"Expected recordings of gamma_max {longest} for agent {name}, which drafts up to {longest} tokens, got "
            f"{depth}. Record them deeper, or choose another agent."
        )
    present = {f.name for f in fields(settings)}
    changed: dict[str, object] = {key: min(getattr(settings, key), depth) for key in _LIMITS if key in present}
    for key in _CHOICES:
        if key in present:
            changed[key] = kept = tuple(length for length in getattr(settings, key) if length <= depth)
            if not kept:
                raise ConfigError(
                    f"Expected agent.{key} to hold a length of at most {depth}, the gamma_max of the recordings, got "
                    f"{list(getattr(settings, key))}."
                )
            if key == "candidates":
                changed["start"] = min(settings.start, len(kept) - 1)
    return replace(settings, **changed)
