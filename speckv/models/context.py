# SPDX-License-Identifier: Apache-2.0
"""How long a text a model can hold while every pass computes the same positions."""

import sys
from typing import Any

from torch import nn

from speckv.models.cache import unwrapped

_FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn", "proportional")
"""Rotary embeddings whose angles do not depend on the length of the text."""


def context_limit(model: nn.Module) -> int:
    """Longest text that a model takes, in tokens.

    Rotary embeddings that change with the length of the text (LongRoPE, dynamic NTK) end where they change: past that
    point cached keys and new ones disagree, and texts depend on how many tokens are verified together.
    """
    config: Any = unwrapped(model).config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or sys.maxsize
    return min([int(limit), *_rotation_limits(config)])


def hard_context_limit(model: nn.Module) -> int:
    """Longest text for which a model can compute positions at all: unbounded with ordinary rotary embeddings.

    `generate` goes on past `max_position_embeddings` with a warning where the model can, and so do texts that are
    decoded behind it.
    """
    config: Any = unwrapped(model).config.get_text_config()
    limits = _rotation_limits(config)
    rotates = bool(_rotations(config))
    return min(limits, default=sys.maxsize) if rotates else context_limit(model)


def _rotations(config: Any) -> list[dict[str, Any]]:
    """Parameters of a model's rotary embeddings, one or one a kind of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in found:
        return [found]
    return [value for value in found.values() if isinstance(value, dict) and "rope_type" in value]


def _rotation_limits(config: Any) -> list[int]:
    limits = []
    for rotation in _rotations(config):
        if rotation["rope_type"] in _FIXED_ROTATIONS:
            continue
        original = rotation.get("original_max_position_embeddings")
        original = original or getattr(config, "original_max_position_embeddings", None)
        limits.append(int(original or config.max_position_embeddings))
    return limits
