# SPDX-License-Identifier: Apache-2.0
"""Our decode loop behind transformers' `generate`, by its `custom_generate` argument.

    target.generate(**inputs, custom_generate=custom_generate, draft_model=draft, policy="mine.speckv")

`draft_model` and `policy` are names of ours: what `generate` itself calls `assistant_model` never reaches a callable.
"""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.utils import GenerateDecoderOnlyOutput

from speckv.decoding import DecodeStep, Engine
from speckv.errors import ConfigError
from speckv.integrations.transformers.candidates import exclusive
from speckv.integrations.transformers.models import as_draft, as_is, require_pair, scored_by_both, vocabulary
from speckv.integrations.transformers.request import Request
from speckv.models.causal import CausalModel
from speckv.models.pair import causal_model
from speckv.models.parts import hard_context_limit, unwrapped
from speckv.runtime.policy import Policy
from speckv.runtime.session import Session
from speckv.types import FloatArray

_PREPARED = "_speckv_prepared"
"""Attribute of a model that holds what `prepare` made of it, buffers on the device included."""


_CACHE_FIELD = "cache" if "cache" in {one.name for one in fields(GenerateDecoderOnlyOutput)} else "past_key_values"
"""Name of the cache in what `generate` returns: `cache` since transformers 5.24."""


def prepare(*models: PreTrainedModel, compression: str = "fp16", static_cache: bool | None = None) -> None:
    """Makes models faster for `custom_generate`, in place: narrow layers on CPUs, fixed buffers and graphs on CUDA.

    Args:
        models: Targets and drafts; those that were prepared already are left alone.
        compression: That they were loaded with.
        static_cache: Whether sequences live in fixed buffers; by default on CUDA.

    Raises:
        ConfigError: if a static cache is wanted that a model does not allow.
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
    """Decodes one prompt with SpecKV's engine; given to `generate`, which calls it.

    Processors, stopping criteria and streamers are those of plain `generate`: each is called once for every emitted
    token, in order.

    Args:
        model: The target.
        input_ids: Shape [1, tokens].
        generation_config: As `generate` prepared it.
        logits_processor: As `generate` prepared it; all but classifier-free guidance.
        stopping_criteria: As `generate` prepared it.
        draft_model: Proposes; it reads nothing for a policy that never drafts.
        policy: As loaded, or the folder of an exported one.
        compression: Of the target; the policy's first by default.
        cost_ratio: One draft pass over one target pass; what the policy was trained with by default.
        **model_kwargs: What else `generate` prepared; see docs/integrations/transformers.md for what is taken.

    Returns:
        Shape [1, tokens + new]; or an object with it as `sequences`, and the cache, where the config asks for one.

    Raises:
        ConfigError: for what the engine does not serve, before anything is decoded.
        ModelError: for models whose cache cannot forget rejected tokens.
        BudgetError: if the prompt does not fit the target's positions.
    """
    if draft_model is None or policy is None:
        raise ConfigError("Expected draft_model=... and policy=... beside custom_generate, and one is missing.")
    policy = policy if isinstance(policy, Policy) else Policy.load(policy)
    require_pair(model, draft_model)
    request = Request.of(input_ids, generation_config, logits_processor, stopping_criteria, model_kwargs)
    target = _causal(model)
    engine = Engine(
        target,
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


def decode(engine: Engine, session: Session, request: Request, policy: Policy, *, device: torch.device) -> list[int]:
    """Drives the engine with a session until the request ends, and returns the tokens of its text.

    Args:
        engine: Any request that it was decoding is dropped.
        session: Fresh, of the policy.
        request: Prompt, budget, processors, criteria and streamer.
        policy: Where it decides once a step, nothing waits for the device inside a step.
        device: Where the caller's criteria expect token ids.
    """
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
        num_shown = 0

        def go_on(signals: FloatArray) -> bool:
            nonlocal num_shown
            num_shown = len(signals)
            with lock:
                return session.go_on(*signals[-1].tolist())

        with lock:
            gamma = session.begin_step()
        step = engine.step(gamma, go_on if inside else None)
        outcome = step.outcome
        with lock:
            for entropy, confidence, margin in outcome.draft_signals[num_shown:].tolist():
                session.go_on(entropy, confidence, margin)
            session.end_step(
                outcome.num_accepted,
                outcome.target_entropy,
                outcome.target_confidence,
                num_drafted=outcome.num_drafted,
                num_emitted=outcome.num_emitted,
                seconds=outcome.seconds,
            )
        _stream(request, step)
    if request.streamer is not None:
        request.streamer.end()
    return list(engine.tokens)


def _stream(request: Request, step: DecodeStep) -> None:
    """Hands a step's tokens to the streamer one by one, as plain `generate` does; the prompt it has already."""
    if request.streamer is not None:
        for token in step.tokens:
            request.streamer.put(torch.tensor([token]))


def _causal(model: PreTrainedModel) -> CausalModel:
    """The target as the engine drives it: as `prepare` made it, or as it is."""
    return _causal_of(model) or as_is(model)


def _draft(model: PreTrainedModel, target: PreTrainedModel) -> CausalModel:
    """The draft as the engine drives it, with the target's vocabulary."""
    prepared = _causal_of(model)
    if prepared is None:
        return as_draft(model, target)
    fitted: dict[int, CausalModel] = model.__dict__[_PREPARED].fitted
    size = vocabulary(target)
    if size not in fitted:
        fitted[size] = as_draft(prepared, target)
    return fitted[size]


def _causal_of(model: PreTrainedModel) -> CausalModel | None:
    """What `prepare` made of this very model; a shallow copy of one has not been prepared."""
    found = model.__dict__.get(_PREPARED, _Prepared(None)).causal
    return found if found is not None and found.hf is unwrapped(model) else None


class _Prepared:
    """What `prepare` made of a model. Copies and pickles of the model do not hold its buffers and graphs.

    Attributes:
        causal: The model as the engine drives it.
        fitted: Vocabulary size of a target -> the model as its draft.
    """

    def __init__(self, causal: CausalModel | None) -> None:
        self.causal = causal
        self.fitted: dict[int, CausalModel] = {}

    def __deepcopy__(self, memo: object) -> "_Prepared":
        return _Prepared(None)

    def __reduce__(self) -> tuple[type["_Prepared"], tuple[None]]:
        return _Prepared, (None,)
