# SPDX-License-Identifier: Apache-2.0
"""SpecKV's decode loop behind transformers' `generate`, by its `custom_generate` argument.

    prepare(target, draft)
    target.generate(**inputs, custom_generate=custom_generate, draft_model=draft)

`generate` does not pass `assistant_model` to a callable, hence `draft_model`.
"""

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, MaxLengthCriteria, PreTrainedModel, StoppingCriteriaList
from transformers.generation import logits_process as known
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.stopping_criteria import EosTokenCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from speckv.decoding import DecodeStep, Engine, SamplingConfig
from speckv.errors import ConfigError
from speckv.integrations.transformers.candidates import exclusive
from speckv.integrations.transformers.models import (
    as_draft,
    as_is,
    require_pair,
    scored_by_both,
    shipped_with,
    vocabulary,
    warn_if_trained_elsewhere,
)
from speckv.models.causal import CausalModel
from speckv.models.defaults import token_ids
from speckv.models.pair import causal_model
from speckv.models.parts import hard_context_limit, unwrapped
from speckv.models.processors import Processors
from speckv.runtime.policy import Policy
from speckv.runtime.session import Session
from speckv.types import FloatArray

_LARGEST_SEED = 2**62
_DEEPEST_CALL = 16
"""Frames between `generate` and the callable, decorators included."""

_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.ASSISTED_GENERATION)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """A call of `generate` as a request of the engine; `criteria` are the caller's own."""

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
    ) -> "GenerateRequest":
        """Reads what `generate` prepared: ids [1, tokens], and arguments of the model's `forward`."""
        call = _generate_call()
        _require_plain(input_ids, config, model_kwargs, call)
        lengths = [criterion.max_length for criterion in criteria if type(criterion) is MaxLengthCriteria]
        ends = [criterion.eos_token_id for criterion in criteria if type(criterion) is EosTokenCriteria]
        own = [criterion for criterion in criteria if type(criterion) not in (MaxLengthCriteria, EosTokenCriteria)]
        sampling, processing = _sampling(config, processors)
        return GenerateRequest(
            prompt=input_ids[0].tolist(),
            max_new_tokens=max(1, min(lengths, default=config.max_length) - input_ids.shape[1]),
            eos_token_ids=frozenset[int]().union(*map(token_ids, ends)),
            sampling=sampling,
            processors=processing,
            criteria=StoppingCriteriaList(own),
            streamer=call.get("streamer"),
        )

    def ends(self, text: list[int], device: torch.device) -> bool:
        """Whether one of the caller's criteria ends prompt and output."""
        return bool(self.criteria(torch.tensor([text], device=device), None).all())


def _generate_call() -> Mapping[str, Any]:
    """Arguments of the running call of `generate`, from its frame.

    `generate` does not pass `streamer`, `synced_gpus` and `assistant_model` to a callable (transformers 5.24,
    `_extract_generation_mode_kwargs`). Without its end a streamer's reader would wait for ever.
    """
    generate: Any = inspect.unwrap(GenerationMixin.generate)
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_DEEPEST_CALL + 1):
        if frame is None:
            break
        if frame.f_code is generate.__code__:
            return frame.f_locals
        frame = frame.f_back
    return {}


def _sampling(config: Any, processors: Sequence[Any]) -> tuple[SamplingConfig, Processors | None]:
    if not config.do_sample:
        return SamplingConfig(), Processors.of(processors)
    seed = int(torch.randint(_LARGEST_SEED, ()))  # so that torch.manual_seed repeats a text
    warped = _warping(processors)
    if warped is not None:
        return SamplingConfig(mode="rejection", seed=seed, **warped), None
    return SamplingConfig(mode="rejection", seed=seed), Processors.of(processors)


def _warping(processors: Sequence[Any]) -> dict[str, Any] | None:
    """None if the processors are more than temperature, top-k and top-p, or in another order."""
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


_PREPARED = "_speckv_prepared"
_CACHE_FIELD = "cache" if "cache" in {one.name for one in fields(GenerateDecoderOnlyOutput)} else "past_key_values"
"""`cache` since transformers 5.24."""


def prepare(*models: PreTrainedModel, compression: str = "fp16", static_cache: bool | None = None) -> None:
    """Makes models faster for `custom_generate`, in place: narrow layers on CPUs, fixed buffers and graphs on CUDA.

    `static_cache` (fixed buffers) is by default on for CUDA; ConfigError if it is requested and not supported.
    """
    for model in models:
        if _causal_of(model) is None:
            inner = unwrapped(model)
            prepared = causal_model(
                inner,
                name=type(inner).__name__,
                compression=compression,
                dtype=inner.dtype,
                device=inner.device,
                static_cache=static_cache,
            )
            model.__dict__[_PREPARED] = _Prepared(replace(prepared, context_limit=hard_context_limit(inner)))


@torch.inference_mode()
def custom_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    *,
    generation_config: Any,
    logits_processor: Any = (),
    stopping_criteria: Any = (),
    draft_model: PreTrainedModel | None = None,
    policy: Policy | Path | str | None = None,
    compression: str | None = None,
    cost_ratio: float | None = None,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Decodes one prompt with SpecKV's engine; called by `generate`, which prepares all but the listed arguments.

    Processors, stopping criteria and streamers are called once for every emitted token, as in plain `generate`.

    Args:
        draft_model: Not used if the policy never drafts.
        policy: A loaded policy, or the folder of an exported one; by default the shipped one, which learns the times
                of steps from call to call.
        compression: Of the target; the policy's first by default.
        cost_ratio: One draft pass over one target pass; by default that of the policy's training.

    Raises:
        ConfigError: for anything that the engine does not support, before decoding.
        ModelError: for models whose cache cannot be rolled back.
        BudgetError: if the prompt does not fit the target's positions.
    """
    if draft_model is None:
        raise ConfigError("Expected draft_model=DRAFT beside custom_generate, got none.")
    if policy is None:
        policy = shipped_with(model, draft_model)
    policy = policy if isinstance(policy, Policy) else Policy.load(policy)
    require_pair(model, draft_model)
    warn_if_trained_elsewhere(policy, model, draft_model, compression)
    request = GenerateRequest.of(input_ids, generation_config, logits_processor, stopping_criteria, model_kwargs)
    engine = Engine(
        _causal(model),
        None if policy.never_drafts(compression) else _draft(draft_model, model),
        eos_token_ids=request.eos_token_ids,
        sampling=request.sampling,
    )
    with exclusive(policy):
        session = policy.session(
            max_new_tokens=request.max_new_tokens,
            compression=compression,
            cost_ratio=cost_ratio,
            vocab_size=scored_by_both(model, draft_model),
        )
    tokens = decode(engine, session, request, policy, device=input_ids.device)
    sequences = torch.cat([input_ids, torch.tensor([tokens], dtype=input_ids.dtype, device=input_ids.device)], dim=1)
    if not generation_config.return_dict_in_generate:
        return sequences
    cache = engine.target_cache.exported() if generation_config.use_cache else None
    output: Any = GenerateDecoderOnlyOutput
    return output(**{"sequences": sequences, _CACHE_FIELD: cache})  # type: ignore[no-any-return]


def decode(
    engine: Engine, session: Session, request: GenerateRequest, policy: Policy, *, device: torch.device
) -> list[int]:
    """Decodes a request with a policy's session; the caller's criteria get token ids on `device`."""
    step = engine.start(
        request.prompt,
        max_new_tokens=request.max_new_tokens,
        processors=request.processors,
        stop=(lambda text: request.ends(text, device)) if request.criteria else None,
    )
    inside, lock = policy.granularity == "token", exclusive(policy)
    with lock:
        session.start(step.outcome.target_entropy, step.outcome.target_confidence)
    _stream(request, step)
    while engine.finish is None:
        num_decided = 0

        def go_on(signals: FloatArray) -> bool:
            nonlocal num_decided
            num_decided = len(signals)
            with lock:
                return session.go_on(*signals[-1].tolist())

        with lock:
            gamma = session.begin_step()
        step = engine.step(gamma, go_on if inside else None)
        outcome = step.outcome
        with lock:
            for entropy, confidence, margin in outcome.draft_signals[num_decided:].tolist():
                session.go_on(entropy, confidence, margin)
            session.end_step(
                outcome.num_accepted,
                outcome.target_entropy,
                outcome.target_confidence,
                num_drafted=outcome.num_drafted,
                num_emitted=outcome.num_emitted,
                draft_s=outcome.draft_s,
                first_draft_s=outcome.first_draft_s,
                verify_s=outcome.verify_s,
            )
        _stream(request, step)
    if request.streamer is not None:
        request.streamer.end()
    return list(engine.tokens)


def _stream(request: GenerateRequest, step: DecodeStep) -> None:
    if request.streamer is not None:
        for token in step.tokens:  # one by one, as plain `generate` does
            request.streamer.put(torch.tensor([token]))


def _causal(model: PreTrainedModel) -> CausalModel:
    return _causal_of(model) or as_is(model)


def _draft(model: PreTrainedModel, target: PreTrainedModel) -> CausalModel:
    prepared = _causal_of(model)
    if prepared is None:
        return as_draft(model, target)
    fitted: dict[int, CausalModel] = model.__dict__[_PREPARED].fitted
    size = vocabulary(target)
    if size not in fitted:
        fitted[size] = as_draft(prepared, target)
    return fitted[size]


def _causal_of(model: PreTrainedModel) -> CausalModel | None:
    """None also for a shallow copy of a prepared model."""
    found = model.__dict__.get(_PREPARED, _Prepared(None)).causal
    return found if found is not None and found.hf is unwrapped(model) else None


class _Prepared:
    """Copies and pickles of the model do not include its buffers and graphs."""

    def __init__(self, causal: CausalModel | None) -> None:
        self.causal = causal
        self.fitted: dict[int, CausalModel] = {}  # the model as a draft, by the target's vocabulary size

    def __deepcopy__(self, memo: object) -> "_Prepared":
        return _Prepared(None)

    def __reduce__(self) -> tuple[type["_Prepared"], tuple[None]]:
        return _Prepared, (None,)
