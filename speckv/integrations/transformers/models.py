# SPDX-License-Identifier: Apache-2.0
"""Models that someone else has loaded: whether two fit each other, and how our own code knows them."""

import sys

from transformers import PreTrainedModel

from speckv.errors import ConfigError
from speckv.models import CausalModel


def vocabulary(model: PreTrainedModel) -> int:
    """Tokens that a model scores."""
    return int(model.config.get_text_config().vocab_size)


def require_pair(target: PreTrainedModel, draft: PreTrainedModel) -> None:
    """Passes if a draft can draft for a target.

    Raises:
        ConfigError: otherwise.
    """
    for model in (target, draft):
        if getattr(model.config, "is_encoder_decoder", False):
            raise ConfigError(f"Expected decoder-only models, got {type(model).__name__}, which has an encoder.")
    if vocabulary(target) != vocabulary(draft):
        raise ConfigError(
            f"Expected models of one vocabulary, got {vocabulary(target)} and {vocabulary(draft)} tokens. "
            "Universal assisted generation is not controlled: take a draft with the target's tokenizer."
        )


def as_is(model: PreTrainedModel) -> CausalModel:
    """A model as our engine knows it; nothing about it is changed."""
    text = model.config.get_text_config()
    return CausalModel(
        name=type(model).__name__,
        hf=model,
        compression="fp16",
        dtype=model.dtype,
        device=model.device,
        vocab_size=vocabulary(model),
        context_limit=int(getattr(text, "max_position_embeddings", None) or sys.maxsize),
    )
