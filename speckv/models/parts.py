# SPDX-License-Identifier: Apache-2.0
"""Parts of a transformers model: its decoder, its scoring of hidden states, and copies with some modules replaced.

Copies share every weight. The original is not changed.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


def decoder_of(model: PreTrainedModel) -> Any:
    """The model without its scoring layer: `model.model` of a Llama, `model.transformer` of a GPT-2."""
    return model.base_model


def with_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> Any:
    """A copy of a model in which some modules are others, wherever they occur.

    Args:
        model: The model; modules that are not replaced are shared, and so are all weights.
        replacements: Module of the model -> module in its place.
    """
    if model in replacements:
        return replacements[model]
    children = {
        name: child if child is None else with_modules(child, replacements) for name, child in model._modules.items()
    }
    if all(children[name] is child for name, child in model._modules.items()):
        return model
    shallow = copy.copy(model)
    shallow._modules = children
    return shallow


class _Given:
    """What a decoder returns: hidden states, and None for everything else."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, index: int | slice) -> Any:
        return self.last_hidden_state if index == 0 else ()


class _GivenStates(nn.Module):
    """Stands in for a decoder: returns the hidden states it is given as input embeddings."""

    def forward(self, *args: object, inputs_embeds: Tensor, **kwargs: object) -> _Given:
        del args, kwargs
        return _Given(inputs_embeds)


def scoring_of(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """The function from hidden states to scores that the model applies, with its soft caps and scales.

    Returns:
        Hidden states of shape [rows, hidden] -> scores of shape [rows, vocab], in the model's dtype.
    """
    head = with_modules(model, {decoder_of(model): _GivenStates()})

    def score(hidden: Tensor) -> Tensor:
        scores: Tensor = head(inputs_embeds=hidden[None], use_cache=False, return_dict=True).logits[0]
        return scores

    return score
