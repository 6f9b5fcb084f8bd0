# SPDX-License-Identifier: Apache-2.0
"""Model pairs: loading, compression, and the cached sequences that the decode loop drives."""

from speckv.models.causal import CachedSequence, CausalModel
from speckv.models.compression import COMPRESSION_KINDS, register_compression
from speckv.models.pair import ModelPair, PairConfig, load_pair
from speckv.models.ragged import RaggedModel

__all__ = [
    "COMPRESSION_KINDS",
    "CachedSequence",
    "CausalModel",
    "ModelPair",
    "PairConfig",
    "RaggedModel",
    "load_pair",
    "register_compression",
]
