# SPDX-License-Identifier: Apache-2.0
"""Turns the config group `model` into what the library takes."""

from omegaconf import DictConfig

from speckv.commands.app import plain
from speckv.models import PairConfig
from speckv.models.pair import choose_pair


def pair_config(model: DictConfig) -> PairConfig:
    """Builds a `PairConfig` from the config group; see `choose_pair`."""
    return choose_pair(plain(model))
