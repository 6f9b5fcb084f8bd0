# SPDX-License-Identifier: Apache-2.0
"""The one decode loop: draft, verify, emit."""

from speckv.decoding.batched import BatchEngine
from speckv.decoding.batched_generation import BatchResult, generate_batch
from speckv.decoding.engine import Engine
from speckv.decoding.generation import GenerationResult, RequestContext, generate, stepwise
from speckv.decoding.prompt_lookup import PromptLookup
from speckv.decoding.sampling import SamplingConfig
from speckv.decoding.sources import draft_source
from speckv.decoding.step import DecodeStep

__all__ = [
    "BatchEngine",
    "BatchResult",
    "DecodeStep",
    "Engine",
    "GenerationResult",
    "PromptLookup",
    "RequestContext",
    "SamplingConfig",
    "draft_source",
    "generate",
    "generate_batch",
    "stepwise",
]
