# SPDX-License-Identifier: Apache-2.0
"""Environments in which a controller learns the speculation length. Importing this registers them with Gymnasium."""

import gymnasium as gym

from envs.gamma_selection import GammaSelectionEnv
from envs.vector import GammaSelectionVectorEnv

GAMMA_SELECTION = "SpecKV/GammaSelection-v0"

__all__ = ["GAMMA_SELECTION", "GammaSelectionEnv", "GammaSelectionVectorEnv"]

if GAMMA_SELECTION not in gym.registry:
    gym.register(
        id=GAMMA_SELECTION,
        entry_point="envs.gamma_selection:GammaSelectionEnv",
        vector_entry_point="envs.vector:GammaSelectionVectorEnv",
    )
