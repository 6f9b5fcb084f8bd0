# SPDX-License-Identifier: Apache-2.0
"""Turns the config group `model` into what the library takes."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from speckv.errors import ConfigError
from speckv.models import PairConfig


def pair_config(model: DictConfig) -> PairConfig:
    """Builds a `PairConfig` from the config group.

    With `model.folder`, target and draft are the GGUF files of the pair's usual names inside that folder; a draft that
    is "self" or "lookup" stays what it is.

    Raises:
        ConfigError: if the pair has no usual GGUF names.
    """
    content = OmegaConf.to_container(model, resolve=True)
    assert isinstance(content, dict)
    fields = {str(name): value for name, value in content.items()}
    folder = fields.get("folder")
    if folder is not None:
        if not fields.get("target_gguf"):
            raise ConfigError(
                f"Expected model.target and model.draft for {fields['name']}: it has no usual GGUF names."
            )
        fields["target"] = str(Path(folder) / fields["target_gguf"])
        if fields.get("draft_gguf") and fields["draft"] not in ("self", "lookup"):
            fields["draft"] = str(Path(folder) / fields["draft_gguf"])
    return PairConfig(**{name: value for name, value in fields.items() if name in PairConfig.__dataclass_fields__})
