# SPDX-License-Identifier: Apache-2.0
"""Parts of a transformers model, its position limits, and copies that share weights with the unchanged original."""

import copy
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


def unwrapped(model: nn.Module) -> Any:
    """The transformers model inside a wrapper: PEFT adapters, `torch.compile`, distributed training."""
    inner: Any = model
    while True:
        if hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module
        else:
            return inner


def decoder_of(model: PreTrainedModel) -> Any:
    """The model without its scoring layer: `model.model` of a Llama, `model.transformer` of a GPT-2."""
    return model.base_model


def with_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> Any:
    """A copy with some modules replaced wherever they occur; the others are shared."""
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
    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, index: int | slice) -> Any:
        return self.last_hidden_state if index == 0 else ()


class _GivenStates(nn.Module):
    """Takes the place of a decoder: returns its input embeddings as hidden states."""

    def forward(self, *args: object, inputs_embeds: Tensor, **kwargs: object) -> _Given:
        del args, kwargs
        return _Given(inputs_embeds)


def scoring_of(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """Hidden states [rows, hidden] -> scores [rows, vocab] in the model's dtype, with its soft caps and scales."""
    head = with_modules(model, {decoder_of(model): _GivenStates()})

    def score(hidden: Tensor) -> Tensor:
        scores: Tensor = head(inputs_embeds=hidden[None], use_cache=False, return_dict=True).logits[0]
        return scores

    return score


_FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn", "proportional")
"""Rotary embeddings whose angles do not depend on the length of the text."""


def context_limit(model: nn.Module) -> int:
    """Longest text in tokens.

    Rotary embeddings that change with the length (LongRoPE, dynamic NTK) end where they change: cached keys and new
    ones disagree past that point.
    """
    config: Any = unwrapped(model).config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or sys.maxsize
    return min([int(limit), *_rotation_limits(config)])


def hard_context_limit(model: nn.Module) -> int:
    """Longest text with positions: unbounded with ordinary rotary embeddings, as in `generate`."""
    config: Any = unwrapped(model).config.get_text_config()
    limits = _rotation_limits(config)
    rotates = bool(_rotations(config))
    return min(limits, default=sys.maxsize) if rotates else context_limit(model)


def _rotations(config: Any) -> list[dict[str, Any]]:
    found = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in found:
        return [found]
    return [value for value in found.values() if isinstance(value, dict) and "rope_type" in value]


def _rotation_limits(config: Any) -> list[int]:
    limits = []
    for rotation in _rotations(config):
        if rotation["rope_type"] in _FIXED_ROTATIONS:
            continue
        original = rotation.get("original_max_position_embeddings")
        original = original or getattr(config, "original_max_position_embeddings", None)
        limits.append(int(original or config.max_position_embeddings))
    return limits
