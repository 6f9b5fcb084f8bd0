# SPDX-License-Identifier: Apache-2.0
"""Checks that two loaded models fit each other, and adapters for the engine."""

from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedModel

from speckv.errors import ConfigError
from speckv.models import CausalModel
from speckv.models.cache import require_rollback
from speckv.models.causal import with_vocabulary
from speckv.models.parts import context_limit, hard_context_limit, unwrapped
from speckv.runtime.matching import warn_of_differences
from speckv.runtime.policy import Policy
from speckv.runtime.shipped import WORD
from speckv.types import same_but_padding


def vocabulary(model: PreTrainedModel) -> int:
    """Size of a vocabulary with padding."""
    return int(model.config.get_text_config().vocab_size)


def scored_by_both(target: PreTrainedModel, draft: PreTrainedModel) -> int:
    """The smaller of two vocabulary sizes that differ by padding."""
    return min(vocabulary(target), vocabulary(draft))


_SHIPPED: WeakKeyDictionary[nn.Module, WeakKeyDictionary[nn.Module, Policy]] = WeakKeyDictionary()


def shipped_with(target: nn.Module, draft: nn.Module) -> Policy:
    """The shipped policy of a pair: what it learns of their times stays, as long as both models do."""
    policies = _SHIPPED.setdefault(unwrapped(target), WeakKeyDictionary())
    inner = unwrapped(draft)
    if inner not in policies:
        policies[inner] = Policy.load(WORD)
    return policies[inner]


def warn_if_trained_elsewhere(
    policy: Policy, target: PreTrainedModel, draft: PreTrainedModel, compression: str | None
) -> None:
    """Logs one line if a policy was trained on other models, where their names are known."""
    names = [str(getattr(unwrapped(model).config, "_name_or_path", "")) for model in (target, draft)]
    warn_of_differences(policy, target=names[0], draft=names[1], compression=compression)


def require_pair(target: PreTrainedModel, draft: PreTrainedModel) -> None:
    """Checks that a draft fits a target.

    Raises:
        ConfigError: if a model has an encoder or an unsupported adapter, or the vocabularies differ.
        ModelError: if a model's cache cannot be rolled back, as with recurrent layers.
    """
    for model in (target, draft):
        if getattr(model.config, "is_encoder_decoder", False):
            raise ConfigError(f"Expected decoder-only models, got {type(model).__name__}, which has an encoder.")
        require_plain_adapters(model)
        require_rollback(model, type(unwrapped(model)).__name__)
    sizes = vocabulary(target), vocabulary(draft)
    if not same_but_padding(*sizes):
        raise ConfigError(
            f"Expected models of one tokenizer, got {sizes[0]} and {sizes[1]} tokens. "
            "Universal assisted generation is not controlled: take a draft with the target's tokenizer."
        )


def require_plain_adapters(model: nn.Module) -> None:
    """ConfigError for PEFT adapters whose result for a token depends on other tokens of the pass."""
    # Inside `generate` PEFT calls the inner model, where it has replaced this method by the wrapper's.
    caller = getattr(vars(model).get("prepare_inputs_for_generation"), "__self__", None)
    found: list[Any] = [getattr(wrapper, "peft_config", None) for wrapper in (model, caller)]
    for adapter in (adapter for adapters in found if isinstance(adapters, dict) for adapter in adapters.values()):
        kind = str(getattr(adapter.peft_type, "value", adapter.peft_type))
        if getattr(adapter, "is_prompt_learning", False):
            raise ConfigError(
                f"Expected a model without virtual tokens, got a PEFT adapter of type {kind}. "
                "Use an adapter that changes weights, such as LoRA."
            )
        if getattr(adapter, "alora_invocation_tokens", None) or kind == "XLORA":
            name = "X-LoRA" if kind == "XLORA" else "activated LoRA (alora_invocation_tokens)"
            raise ConfigError(
                f"Expected a PEFT adapter that acts on each token alone, got {name}, which acts on some of the tokens "
                "that are passed together and so gives other texts where several are verified. Use LoRA."
            )


def as_is(model: PreTrainedModel) -> CausalModel:
    """A model for the engine, limited by its positions, as in `generate`."""
    inner = unwrapped(model)
    return CausalModel(
        name=type(inner).__name__,
        hf=inner,
        compression="fp16",
        dtype=inner.dtype,
        device=inner.device,
        vocab_size=vocabulary(inner),
        context_limit=hard_context_limit(inner),
    )


def as_draft(draft: CausalModel | PreTrainedModel, target: PreTrainedModel) -> CausalModel:
    """A draft for the engine, with the target's vocabulary and its own context limit."""
    known = draft if isinstance(draft, CausalModel) else as_is(draft)
    limited = replace(known, context_limit=context_limit(known.hf))
    return with_vocabulary(limited, vocabulary(target))
