# SPDX-License-Identifier: Apache-2.0
"""Our decode loop behind transformers' `generate`, by its `custom_generate` argument.

    target.generate(**inputs, custom_generate=custom_generate, draft_model=draft, policy="mine.speckv")

`draft_model` and `policy` are names of ours: what `generate` itself calls `assistant_model` never reaches a callable.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.utils import GenerateDecoderOnlyOutput

from speckv.decoding import Engine, SamplingConfig
from speckv.errors import ConfigError
from speckv.integrations.transformers.models import as_is, require_pair, vocabulary
from speckv.models.causal import CausalModel
from speckv.models.pair import causal_model
from speckv.runtime.exported import Policy
from speckv.runtime.session import Session
from speckv.types import FloatArray

WARPERS = {"TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper"}
CRITERIA = {"MaxLengthCriteria", "EosTokenCriteria"}
"""What the engine does itself. Other processors and criteria are refused, not ignored."""
_PREPARED = "_speckv_prepared"
"""Where a model keeps what `prepare` made of it: as long as it lives itself, buffers on the device included."""
_LARGEST_SEED = 2**62


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
            model.__dict__[_PREPARED] = _Prepared(
                causal_model(
                    model,
                    name=type(model).__name__,
                    compression=compression,
                    dtype=model.dtype,
                    device=model.device,
                    static_cache=static_cache,
                )
            )


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

    Args:
        model: The target.
        input_ids: Shape [1, tokens].
        generation_config: As `generate` prepared it: lengths, end of text, sampling.
        logits_processor: Temperature, top-k and top-p, and nothing else.
        stopping_criteria: Length and end of text, and nothing else.
        draft_model: Proposes; it reads nothing for a policy that never drafts.
        policy: As loaded, or the folder of an exported one.
        compression: Of the target; the policy's first by default.
        cost_ratio: One draft pass over one target pass; what the policy was trained with by default.
        **model_kwargs: What else `generate` prepared; a mask that hides nothing is all that is taken.

    Returns:
        Shape [1, tokens + new]; or an object with it as `sequences`, where the config asks for one.

    Raises:
        ConfigError: for settings that the engine does not have, before anything is decoded.
    """
    if draft_model is None or policy is None:
        raise ConfigError("Expected draft_model=... and policy=... beside custom_generate, and one is missing.")
    policy = policy if isinstance(policy, Policy) else Policy.load(policy)
    require_pair(model, draft_model)
    sampling = _sampling(generation_config, logits_processor)
    _require_plain(input_ids, stopping_criteria, model_kwargs)
    prompt = input_ids[0].tolist()
    budget = int(generation_config.max_length) - len(prompt)
    eos = getattr(generation_config, "_eos_token_tensor", None)
    engine = Engine(
        _causal(model),
        None if policy.never_drafts(compression) else _causal(draft_model),
        eos_token_ids=frozenset() if eos is None else frozenset(eos.flatten().tolist()),
        sampling=sampling,
    )
    session = policy.session(
        max_new_tokens=budget,
        compression=compression,
        cost_ratio=cost_ratio,
        vocab_size=vocabulary(model),
    )
    tokens = decode(engine, session, prompt, max_new_tokens=budget, inside=policy.granularity == "token")
    sequences = torch.cat([input_ids, torch.tensor([tokens], dtype=input_ids.dtype, device=input_ids.device)], dim=1)
    return GenerateDecoderOnlyOutput(sequences=sequences) if generation_config.return_dict_in_generate else sequences  # type: ignore[arg-type]


def decode(engine: Engine, session: Session, prompt: list[int], *, max_new_tokens: int, inside: bool) -> list[int]:
    """Drives the engine with a session until the request ends, and returns the tokens of its text.

    Args:
        engine: Any request that it was decoding is dropped.
        session: Fresh.
        prompt: Token ids.
        max_new_tokens: Token budget.
        inside: Whether the session is asked behind each drafted token; otherwise nothing waits for the device inside a
            step.
    """
    prefill = engine.start(prompt, max_new_tokens=max_new_tokens).outcome
    session.start(prefill.target_entropy, prefill.target_confidence)
    while engine.finish is None:
        told = 0

        def go_on(signals: FloatArray) -> bool:
            nonlocal told
            told = len(signals)
            return session.go_on(*signals[-1].tolist())

        outcome = engine.step(session.begin_step(), go_on if inside else None).outcome
        for entropy, confidence, margin in outcome.draft_signals[told:].tolist():
            session.go_on(entropy, confidence, margin)
        session.end_step(
            outcome.num_accepted,
            outcome.target_entropy,
            outcome.target_confidence,
            num_drafted=outcome.num_drafted,
            num_emitted=outcome.num_emitted,
            seconds=outcome.seconds,
        )
    return list(engine.tokens)


def _causal(model: PreTrainedModel) -> CausalModel:
    """The model as the engine knows it: as `prepare` made it, or as it is."""
    return _causal_of(model) or as_is(model)


def _causal_of(model: PreTrainedModel) -> CausalModel | None:
    """What `prepare` made of this very model; a shallow copy of one has not been prepared."""
    found = model.__dict__.get(_PREPARED, _Prepared(None)).causal
    return found if found is not None and found.hf is model else None


class _Prepared:
    """What `prepare` made of a model; whoever copies or stores the model does not copy or store buffers and graphs."""

    def __init__(self, causal: CausalModel | None) -> None:
        self.causal = causal

    def __deepcopy__(self, memo: object) -> "_Prepared":
        return _Prepared(None)

    def __reduce__(self) -> tuple[type["_Prepared"], tuple[None]]:
        return _Prepared, (None,)


def _sampling(config: Any, processors: Any) -> SamplingConfig:
    names = {type(processor).__name__ for processor in processors}
    if other := names - WARPERS:
        raise ConfigError(
            f"Expected no logits processors but {sorted(WARPERS)}, got {sorted(other)}. "
            "Leave those settings out, or use speckv.integrations.transformers.control, which has them all."
        )
    if not config.do_sample:
        return SamplingConfig()
    return SamplingConfig(
        mode="rejection",
        temperature=float(config.temperature or 1.0),
        top_k=int(config.top_k or 0),
        top_p=float(config.top_p or 1.0),
        seed=int(torch.randint(_LARGEST_SEED, ())),  # so that torch.manual_seed repeats a text
    )


def _require_plain(input_ids: Tensor, criteria: Any, model_kwargs: dict[str, Any]) -> None:
    if input_ids.shape[0] != 1:
        raise ConfigError(f"Expected one prompt, got a batch of {input_ids.shape[0]}. Call generate for each of them.")
    if other := {type(criterion).__name__ for criterion in criteria} - CRITERIA:
        raise ConfigError(f"Expected no stopping criteria but length and end of text, got {sorted(other)}.")
    mask = model_kwargs.get("attention_mask")
    if mask is not None and not bool((mask == 1).all()):
        raise ConfigError("Expected an attention mask that hides nothing, got one that does. Remove the padding.")
    for name in ("cache", "past_key_values"):
        cache = model_kwargs.get(name)
        if cache is not None and type(cache).__name__ not in ("DynamicCache", "EncoderDecoderCache"):
            raise ConfigError(
                f"Expected no cache_implementation, got {type(cache).__name__}. The engine brings its own."
            )
        if cache is not None and cache.get_seq_length():
            raise ConfigError("Expected a text from its start, got a cache that holds a part of one.")
