# SPDX-License-Identifier: Apache-2.0
"""Turns the config group `model` into what the library takes."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from speckv.models import PairConfig


def pair_config(model: DictConfig, **changes: Any) -> PairConfig:
    """Builds a `PairConfig` from the config group; `changes` replace its fields."""
    fields = OmegaConf.to_container(model, resolve=True)
    assert isinstance(fields, dict)
    known = {str(name): value for name, value in fields.items() if name in PairConfig.__dataclass_fields__}
    return PairConfig(**{**known, **changes})
