# SPDX-License-Identifier: Apache-2.0
"""Which drafts a loaded pair has."""

from speckv.decoding.prompt_lookup import PromptLookup
from speckv.models import CausalModel, ModelPair


def draft_source(pair: ModelPair) -> CausalModel | PromptLookup:
    """What the engine drafts with: the pair's draft model, or a lookup where it has none.

    Raises:
        ConfigError: if the lookup's lengths are out of range.
    """
    if pair.draft_model is not None:
        return pair.draft_model
    config = pair.config
    return PromptLookup(pair.target.vocab_size, config.lookup_longest, config.lookup_shortest)
