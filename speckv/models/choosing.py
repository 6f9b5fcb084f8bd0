# SPDX-License-Identifier: Apache-2.0
"""Turns plain settings of the group `model` into what `load_pair` takes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speckv.errors import ConfigError, nearest
from speckv.models.pair import PairConfig

_BESIDE = ("folder", "target_gguf", "draft_gguf")


def choose_pair(model: Mapping[str, Any]) -> PairConfig:
    """Builds a `PairConfig`.

    With `folder`, target and draft are the GGUF files of the pair's usual names inside that folder; a draft that is
    "self" or "lookup" stays what it is.

    Args:
        model: Fields of `PairConfig`, and `folder`, `target_gguf`, `draft_gguf`.

    Raises:
        ConfigError: if a field is unknown, or `folder` is given and the pair has no usual GGUF names.
    """
    known = [*PairConfig.__dataclass_fields__, *_BESIDE]
    for key in model:
        if key not in known:
            raise ConfigError(f"Unknown setting 'model.{key}'; known here: {known}.{nearest(str(key), known)}")
    fields = {name: value for name, value in model.items() if name not in _BESIDE}
    folder = model.get("folder")
    if folder is not None:
        if not model.get("target_gguf"):
            raise ConfigError(
                f"Expected model.target and model.draft for {model.get('name')}: it has no usual GGUF names."
            )
        fields["target"] = str(Path(folder) / model["target_gguf"])
        if model.get("draft_gguf") and model.get("draft") not in ("self", "lookup"):
            fields["draft"] = str(Path(folder) / model["draft_gguf"])
    return PairConfig(**fields)
