# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of many families, each with a draft that often agrees with it, and every way to decode them."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from speckv.decoding import BatchEngine, Engine, SamplingConfig
from speckv.integrations.transformers import control, custom_generate
from speckv.integrations.transformers.models import as_draft, as_is
from speckv.models import RaggedModel
from speckv.profiling.prompts import Prompt
from speckv.profiling.record import Recorder
from speckv.runtime import Policy
from speckv.traces import TraceSequence
from tests.fakes import VOCAB
from tests.fakes_policies import Scheduled

WINDOW = 16
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_WINDOWS: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}


def _family(name: str, *, suffix: str = "ForCausalLM", config: str = "Config", **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        made = getattr(transformers, name + config)(**{**_COMMON, **settings})
        return getattr(transformers, name + suffix)(made)

    return make


def _gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.25
    )
    config.bos_token_id = config.eos_token_id = None
    return transformers.GPT2LMHeadModel(config)


FAMILIES: Mapping[str, Callable[[], Any]] = {
    "llama": _family("Llama"),
    "qwen2": _family("Qwen2"),
    "qwen2-window": _family("Qwen2", use_sliding_window=True, **_WINDOWS),
    "qwen3": _family("Qwen3", head_dim=8),
    "mistral-window": _family("Mistral", head_dim=8, sliding_window=WINDOW),
    "gemma2": _family("Gemma2", head_dim=8, query_pre_attn_scalar=8, **_WINDOWS),
    "gemma3": _family("Gemma3", config="TextConfig", head_dim=8, query_pre_attn_scalar=8, **_WINDOWS),
    "phi3": _family("Phi3"),
    "phi3-window": _family("Phi3", sliding_window=WINDOW),
    "gpt2": _gpt2,
    "gpt-neox": _family("GPTNeoX"),
    "olmo": _family("Olmo"),
    "olmo3": _family("Olmo3", **_WINDOWS),
    "granite": _family("Granite", logits_scaling=3.0),
    "cohere": _family("Cohere", logit_scale=0.5),
    "mixtral": _family("Mixtral", head_dim=8, num_local_experts=4, num_experts_per_tok=2),
    "qwen3-moe": _family(
        "Qwen3Moe", head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1
    ),
}
"""Families whose layers keep keys and values: name -> a model with fresh random weights."""

RECURRENT: Mapping[str, Callable[[], Any]] = {
    "lfm2": _family("Lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    "qwen3-next": _family(
        "Qwen3Next",
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention"],
    ),
}
"""Families with recurrent or convolution layers."""


def family_pair(make: Callable[[], Any], *, noise: float = 0.02) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A target in float64 and a draft: the target plus noise."""
    torch.manual_seed(0)
    target = _ready(make())
    draft = _ready(make())
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: value + noise * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        if value.is_floating_point()
        else value
        for name, value in target.state_dict().items()
    }
    draft.load_state_dict(weights)
    return target, draft


def _ready(model: Any) -> Any:
    model = model.eval().double()
    model.set_experts_implementation("eager")  # the grouped products have no float64
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def plain_text(model: Any, prompt: Sequence[int], max_new_tokens: int, **more: Any) -> list[int]:
    """Greedy text of `generate`; every token of the prompt counts, whatever the padding token is."""
    ids = torch.tensor([list(prompt)])
    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "pad_token_id": 0, **more}
    text = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    found: list[int] = text[0, len(prompt) :].tolist()
    return found


def random_prompt(length: int) -> list[int]:
    """Token ids of a prompt of a length."""
    found: list[int] = torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    return found


def full_text(model: Any, prompt: list[int], max_new_tokens: int) -> list[int]:
    """Greedy text by whole passes, with no cache."""
    text = list(prompt)
    for _ in range(max_new_tokens):
        text.append(int(model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return text[len(prompt) :]


Prompts = Sequence[Sequence[int]]
Texts = list[list[int]]


def by_engine(target: Any, draft: Any, prompts: Prompts, max_new_tokens: int, seed: int) -> Texts:
    """Texts of `Engine` over a random schedule of gammas, zeros among them."""
    rng, engine, texts = random.Random(seed), Engine(as_is(target), as_draft(draft, target)), []
    for prompt in prompts:
        engine.start(prompt, max_new_tokens=max_new_tokens)
        while engine.finish is None:
            engine.step(rng.randrange(7))
        texts.append(list(engine.tokens))
    return texts


def by_batch(target: Any, draft: Any, prompts: Prompts, max_new_tokens: int, seed: int) -> Texts:
    """Texts of `BatchEngine`; the last prompt joins the others after two steps."""
    rng = random.Random(seed)
    engine = BatchEngine(RaggedModel(as_is(target)), RaggedModel(as_draft(draft, target)))
    engine.start(prompts[:-1], max_new_tokens=max_new_tokens)
    rows = list(engine.running)
    for _ in range(2):
        engine.step([rng.randrange(7) for _ in engine.running])
    engine.admit(prompts[-1:], max_new_tokens=max_new_tokens)
    rows += engine.running[-1:]
    while engine.running:
        engine.step([rng.randrange(7) for _ in engine.running])
    return [row.tokens for row in rows]


def by_custom_generate(target: Any, draft: Any, prompts: Prompts, max_new_tokens: int, seed: int) -> Texts:
    """Texts of `generate` with our engine behind it."""
    mine = {"custom_generate": custom_generate, "draft_model": draft, "policy": random_policy(seed)}
    return [plain_text(target, prompt, max_new_tokens, **mine) for prompt in prompts]


def by_control(target: Any, draft: Any, prompts: Prompts, max_new_tokens: int, seed: int) -> Texts:
    """Texts of transformers' assisted generation under a policy."""
    with control(target, draft, random_policy(seed)):
        return [plain_text(target, prompt, max_new_tokens, assistant_model=draft) for prompt in prompts]


def by_recording(target: Any, draft: Any, prompts: Prompts, max_new_tokens: int, seed: int) -> Texts:
    """Texts of a recording."""
    del seed
    return [sequence.tokens.tolist() for sequence in recorded(target, draft, prompts, max_new_tokens)]


WAYS: Mapping[str, Callable[[Any, Any, Prompts, int, int], Texts]] = {
    "engine": by_engine,
    "batch": by_batch,
    "custom_generate": by_custom_generate,
    "control": by_control,
    "recording": by_recording,
}
"""Ways to decode or record: name -> texts of prompts, by target, draft, prompts, token budget and seed."""


def random_policy(seed: int) -> Policy:
    """A policy that draws gammas from 0 to 6."""
    return Policy.of(Scheduled.random(seed), learns=True, cost_ratio={"fp16": 0.3})


def recorded(target: Any, draft: Any, prompts: Prompts, max_new_tokens: int) -> list[TraceSequence]:
    """A greedy recording, in one padded batch."""
    recorder = Recorder(
        as_is(target),
        as_draft(draft, target),
        eos_token_ids=frozenset(),
        sampling=SamplingConfig(),
        max_new_tokens=max_new_tokens,
    )
    named = [Prompt(prompt_id=str(i), task="t", text="x", split="train") for i in range(len(prompts))]
    return recorder.record(named, prompts)
