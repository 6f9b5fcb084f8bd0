# SPDX-License-Identifier: Apache-2.0
"""The request behind a call of `custom_generate`: what the engine serves of it, and refusals of everything else."""

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, MaxLengthCriteria, StoppingCriteriaList
from transformers.generation import logits_process as known
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.stopping_criteria import EosTokenCriteria

from speckv.decoding import SamplingConfig
from speckv.errors import ConfigError
from speckv.models.defaults import token_ids
from speckv.models.processors import Processors

_LARGEST_SEED = 2**62
_DEEPEST_CALL = 16
"""Frames between `generate` and the callable that it calls, decorators included; a bound on the search."""

_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.ASSISTED_GENERATION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as the engine decodes it.

    Attributes:
        prompt: Token ids.
        max_new_tokens: Token budget, at least 1.
        eos_token_ids: Tokens that end the text.
        sampling: How tokens are chosen.
        processors: Of scores; None where there are none.
        criteria: Stopping criteria of the caller's; empty where there are none.
        streamer: Receives tokens as they are emitted; None where there is none.
    """

    prompt: list[int]
    max_new_tokens: int
    eos_token_ids: frozenset[int]
    sampling: SamplingConfig
    processors: Processors | None
    criteria: StoppingCriteriaList
    streamer: Any

    @staticmethod
    def of(
        input_ids: Tensor,
        config: Any,
        processors: Sequence[Any],
        criteria: Sequence[Any],
        model_kwargs: Mapping[str, Any],
    ) -> "Request":
        """Reads what `generate` prepared.

        Args:
            input_ids: Shape [1, tokens].
            config: The request's `GenerationConfig`.
            processors: Logits processors, `generate`'s own and the caller's.
            criteria: Stopping criteria, likewise.
            model_kwargs: What `generate` would pass to the model's `forward`.

        Raises:
            ConfigError: for anything that the engine does not serve.
        """
        call = _generate_call()
        _require_plain(input_ids, config, model_kwargs, call)
        lengths = [criterion.max_length for criterion in criteria if type(criterion) is MaxLengthCriteria]
        ends = [criterion.eos_token_id for criterion in criteria if type(criterion) is EosTokenCriteria]
        own = [criterion for criterion in criteria if type(criterion) not in (MaxLengthCriteria, EosTokenCriteria)]
        sampling, processing = _sampling(config, processors)
        return Request(
            prompt=input_ids[0].tolist(),
            max_new_tokens=max(1, min(lengths, default=config.max_length) - input_ids.shape[1]),
            eos_token_ids=frozenset[int]().union(*map(token_ids, ends)),
            sampling=sampling,
            processors=processing,
            criteria=StoppingCriteriaList(own),
            streamer=call.get("streamer"),
        )

    def ends(self, text: list[int], device: torch.device) -> bool:
        """Whether one of the caller's criteria ends a text, prompt and output."""
        return bool(self.criteria(torch.tensor([text], device=device), None).all())


def _generate_code() -> CodeType:
    function: Any = inspect.unwrap(GenerationMixin.generate)
    code: CodeType = function.__code__
    return code


def _generate_call() -> Mapping[str, Any]:
    """Arguments of the call of `generate` that is running; empty where there is none.

    `generate` passes no callable its `streamer`, `synced_gpus` and `assistant_model` (transformers 5.24,
    `_extract_generation_mode_kwargs`). A streamer that is left out never ends, and its reader waits for ever.
    """
    code, frame = _generate_code(), sys._getframe(1)
    found: FrameType | None = frame
    for _ in range(_DEEPEST_CALL):
        if found is None or found.f_code is code:
            break
        found = found.f_back
    return found.f_locals if found is not None and found.f_code is code else {}


def _sampling(config: Any, processors: Sequence[Any]) -> tuple[SamplingConfig, Processors | None]:
    """How tokens are chosen: by the engine's own warping where it is exactly that of the processors."""
    if not config.do_sample:
        return SamplingConfig(), Processors.of(processors)
    seed = int(torch.randint(_LARGEST_SEED, ()))  # so that torch.manual_seed repeats a text
    warped = _warping(processors)
    if warped is not None:
        return SamplingConfig(mode="rejection", seed=seed, **warped), None
    return SamplingConfig(mode="rejection", seed=seed), Processors.of(processors)


def _warping(processors: Sequence[Any]) -> dict[str, Any] | None:
    """Temperature, top-k and top-p of processors that are at most these three, in this order; else None."""
    order: tuple[tuple[type, str], ...] = (
        (known.TemperatureLogitsWarper, "temperature"),
        (known.TopKLogitsWarper, "top_k"),
        (known.TopPLogitsWarper, "top_p"),
    )
    places = [index for processor in processors for index, (kind, _) in enumerate(order) if type(processor) is kind]
    if len(places) != len(processors) or places != sorted(set(places)):
        return None
    found: dict[str, Any] = {}
    for place, processor in zip(places, processors, strict=True):
        filtered = getattr(processor, "filter_value", -torch.inf), getattr(processor, "min_tokens_to_keep", 1)
        name = order[place][1]
        found[name] = getattr(processor, name)
        if filtered != (-torch.inf, 1) or not found[name]:
            return None
    return found


def _require_plain(input_ids: Tensor, config: Any, model_kwargs: Mapping[str, Any], call: Mapping[str, Any]) -> None:
    """Passes if nothing is asked for besides what `Request` holds."""
    if input_ids.shape[0] != 1:
        raise ConfigError(f"Expected one prompt, got a batch of {input_ids.shape[0]}. Call generate for each of them.")
    mode = config.get_generation_mode()
    if mode not in _MODES:
        raise ConfigError(f"Expected greedy decoding or sampling, got settings of {mode.value}. Leave them out.")
    if call.get("synced_gpus"):
        raise ConfigError("Expected synced_gpus to be off, got it on. The engine runs in one process.")
    if call.get("assistant_model") is not None:
        raise ConfigError("Expected the draft as draft_model=..., got assistant_model=.... Rename it.")
    if wanted := [name for name in _OUTPUTS if getattr(config, name, None)]:
        raise ConfigError(
            f"Expected a request for tokens, got {', '.join(wanted)}. Leave {'it' if len(wanted) == 1 else 'them'} "
            "out, or use speckv.integrations.transformers.control."
        )
    _require_known_inputs(model_kwargs)
    _require_whole_text(input_ids, model_kwargs)


def _require_known_inputs(model_kwargs: Mapping[str, Any]) -> None:
    taken = {"attention_mask", "position_ids", "cache", "past_key_values", "use_cache", "logits_to_keep"}
    ignored = {"cache_position", "output_attentions", "output_hidden_states"}
    other = sorted(name for name, value in model_kwargs.items() if _given(value) and name not in taken.union(ignored))
    if other:
        raise ConfigError(
            f"Expected token ids and no other input of the model, got {', '.join(other)}. Leave them out, or use "
            "speckv.integrations.transformers.control, where transformers passes them on."
        )


def _given(value: object) -> bool:
    return value is not None and not (isinstance(value, dict | list | tuple) and not value)


def _require_whole_text(input_ids: Tensor, model_kwargs: Mapping[str, Any]) -> None:
    mask, positions = model_kwargs.get("attention_mask"), model_kwargs.get("position_ids")
    if mask is not None and not bool((mask == 1).all()):
        raise ConfigError("Expected an attention mask that hides nothing, got one that does. Remove the padding.")
    counted = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    if positions is not None and not torch.equal(positions.to(counted), counted):
        raise ConfigError("Expected position_ids that count from 0, got others. Leave position_ids out.")
    for name in ("cache", "past_key_values"):
        cache = model_kwargs.get(name)
        if cache is not None and type(cache).__name__ not in ("DynamicCache", "EncoderDecoderCache"):
            raise ConfigError(
                f"Expected no cache_implementation, got {type(cache).__name__}. The engine brings its own."
            )
        if cache is not None and cache.get_seq_length():
            raise ConfigError("Expected a text from its start, got a cache that holds a part of one.")
