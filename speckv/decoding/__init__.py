# SPDX-License-Identifier: Apache-2.0
"""The one decode loop: draft, verify, emit."""

from speckv.decoding.batched_generation import BatchResult, generate_batch
from speckv.decoding.engine import BatchEngine, Engine
from speckv.decoding.generation import GenerationResult, RequestContext, generate, stepwise
from speckv.decoding.prompt_lookup import PromptLookup, draft_source
from speckv.decoding.request import DecodeStep
from speckv.decoding.sampling import SamplingConfig

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
