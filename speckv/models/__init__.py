# SPDX-License-Identifier: Apache-2.0
"""Model pairs: loading, compression, and the cached sequences that the decode loop drives."""

from speckv.models.causal import CachedSequence, CausalModel
from speckv.models.compression import COMPRESSION_KINDS, register_compression
from speckv.models.pair import ModelPair, PairConfig, load_pair
from speckv.models.ragged import RaggedModel
from speckv.models.tokenizer import encode_prompt, load_tokenizer, locate, vocabulary_hash

__all__ = [
    "COMPRESSION_KINDS",
    "CachedSequence",
    "CausalModel",
    "ModelPair",
    "PairConfig",
    "RaggedModel",
    "encode_prompt",
    "load_pair",
    "load_tokenizer",
    "locate",
    "register_compression",
    "vocabulary_hash",
]
