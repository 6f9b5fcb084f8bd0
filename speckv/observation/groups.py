# SPDX-License-Identifier: Apache-2.0
"""Features by what they tell of, so that a group of them can be hidden from whatever is fitted or trained."""

from collections.abc import Mapping, Sequence

import numpy as np

from speckv.errors import ConfigError, nearest
from speckv.observation.draft import STOPPING_SCHEMA
from speckv.types import BoolArray, FloatArray

GROUPS: Mapping[str, tuple[str, ...]] = {
    "past_signals": (
        "draft_entropy_mean",
        "draft_entropy_max",
        "draft_confidence_mean",
        "draft_confidence_min",
        "draft_margin_mean",
        "draft_confidence_last",
    ),
    "acceptance": ("accepted_fraction", "previous_gamma", "acceptance_ema", "accepted_ema"),
    "target": ("target_entropy", "target_confidence"),
    "compression": ("cost_ratio", "bits_per_weight"),
    "place": ("position", "tokens_left", "draft_lag"),
    "newest_token": ("token_entropy", "token_confidence", "token_margin"),
    "this_step": ("step_entropy_mean", "step_entropy_max", "step_confidence_min", "step_log_confidence"),
}
"""Group -> its features; how deep a draft is stays seen, for without it no choice inside a step makes sense."""

HIDDEN_STD = np.float32(1e30)
"""Divides what is hidden: so little is left of it that a sum in single precision does not move."""


def hidden_columns(hide: Sequence[str]) -> BoolArray:
    """Which features a list of groups and features names.

    Args:
        hide: Names of `GROUPS` or of `STOPPING_SCHEMA`'s features.

    Returns:
        Shape [features of `STOPPING_SCHEMA`]; the first `SCHEMA.size` are those that are seen before a step.

    Raises:
        ConfigError: naming the first that is neither.

    >>> int(hidden_columns(["target", "position"]).sum())
    3
    """
    names = {name for word in hide for name in GROUPS.get(word, (word,))}
    for name in sorted(names - set(STOPPING_SCHEMA.names)):
        known = [*GROUPS, *STOPPING_SCHEMA.names]
        raise ConfigError(
            f"Expected env.hide to name groups or features of {known}, got {name!r}.{nearest(name, known)}"
        )
    return np.array([name in names for name in STOPPING_SCHEMA.names])


def hide_from(mean: FloatArray, std: FloatArray, hidden: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Normalisation under which hidden features come out as nothing, in training and in every exported form alike.

    Args:
        mean: Shape [features].
        std: Shape [features].
        hidden: Shape [features or more], from `hidden_columns`.

    Returns:
        Mean and deviation, of the same shapes.
    """
    columns = hidden[: len(mean)]
    return np.where(columns, np.float32(0), mean), np.where(columns, HIDDEN_STD, std)
