# SPDX-License-Identifier: Apache-2.0
"""Environments in which a controller learns how many tokens to draft; importing the package registers them."""

import gymnasium as gym

from speckv.envs.draft_stopping import DraftStoppingEnv, DraftStoppingVectorEnv
from speckv.envs.gamma_selection import GammaSelectionEnv, GammaSelectionVectorEnv, PerRequest

GAMMA_SELECTION = "SpecKV/GammaSelection-v0"
DRAFT_STOPPING = "SpecKV/DraftStopping-v0"
LIVE_DECODING = "SpecKV/LiveDecoding-v0"

__all__ = [
    "DRAFT_STOPPING",
    "GAMMA_SELECTION",
    "LIVE_DECODING",
    "DraftStoppingEnv",
    "DraftStoppingVectorEnv",
    "GammaSelectionEnv",
    "GammaSelectionVectorEnv",
    "PerRequest",
]

if GAMMA_SELECTION not in gym.registry:
    gym.register(
        id=GAMMA_SELECTION,
        entry_point="speckv.envs.gamma_selection:GammaSelectionEnv",
        vector_entry_point="speckv.envs.gamma_selection:GammaSelectionVectorEnv",
    )
    gym.register(
        id=DRAFT_STOPPING,
        entry_point="speckv.envs.draft_stopping:DraftStoppingEnv",
        vector_entry_point="speckv.envs.draft_stopping:DraftStoppingVectorEnv",
    )
    # Wall clocks are not repeatable. The entry point is text because its module imports PyTorch.
    gym.register(id=LIVE_DECODING, entry_point="speckv.envs.live:LiveDecodingEnv", nondeterministic=True)
