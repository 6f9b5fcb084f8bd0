# SPDX-License-Identifier: Apache-2.0
"""Pairs and prompts that are measured: the Qwen pair where its weights are, else Llama shapes with random weights.

The time of a pass depends on shapes, dtype and kernels, not on the values of the weights; acceptance depends on them.
Times of random models are therefore meaningful, their texts and acceptance rates are not.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Tokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from benchmarks import qwen
from benchmarks.gpu.stage import Settings
from speckv.errors import ConfigError
from speckv.models import CausalModel, ModelPair, PairConfig, load_pair
from speckv.models.compression import get_compression, silence_int8_cast_notice
from speckv.models.dtypes import resolve_dtype
from speckv.models.pair import causal_model, first_layers, resolve_device

RANDOM = "random:"
"""Prefix of a shape's name where a `PairConfig` names a model."""
DAMPING = 0.05
"""Factor on what the layers after a draft's own add, so that random models accept some drafted tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Public sizes of a model of the Llama family."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int = 128_256
    context: int = 131_072
    tied: bool = True
    rope_factor: float = 32.0
    rope_original: int = 8192
    spread: float = 0.02

    def config(self) -> LlamaConfig:
        """The model's configuration for transformers; no token ends a text."""
        return LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.context,
            rms_norm_eps=1e-5,
            initializer_range=self.spread,
            tie_word_embeddings=self.tied,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": self.rope_factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": self.rope_original,
            },
            bos_token_id=None,
            eos_token_id=None,
        )


_TINY: dict[str, Any] = {
    "hidden": 64,
    "intermediate": 128,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "vocab": 512,
    "context": 512,
    "tied": False,
    "rope_original": 256,
    "spread": 0.25,
}
SHAPES = {
    "llama-3.1-8b": Shape(
        layers=32, hidden=4096, intermediate=14_336, heads=32, kv_heads=8, head_dim=128, tied=False, rope_factor=8.0
    ),
    "llama-3.2-3b": Shape(layers=28, hidden=3072, intermediate=8192, heads=24, kv_heads=8, head_dim=128),
    "llama-3.2-1b": Shape(layers=16, hidden=2048, intermediate=8192, heads=32, kv_heads=8, head_dim=64),
    "tiny-target": Shape(**_TINY | {"layers": 4}),
    "tiny-draft": Shape(**_TINY | {"layers": 2}),
}
"""Name -> sizes, from the configurations that Meta published with the models; the tiny ones are ours."""


def random_model(
    name: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    compression: str = "fp16",
    calm_after: int | None = None,
    seed: int = 0,
) -> CausalModel:
    """A model of a known shape with random weights, made on the device.

    A compressed one is loaded by transformers, from memory, so it equals the model that its saved weights would give.
    The output of layers after the first `calm_after` is multiplied by `DAMPING`, so that a draft made of the first ones
    is sometimes accepted.
    """
    if name not in SHAPES:
        raise ConfigError(f"Expected a shape of {sorted(SHAPES)}, got {name!r}.")
    kind = get_compression(compression, device)
    torch.manual_seed(seed)
    with device:
        model = AutoModelForCausalLM.from_config(SHAPES[name].config(), dtype=dtype, attn_implementation="sdpa")
    if calm_after is not None:
        with torch.no_grad():
            for layer in list(model.model.layers)[calm_after:]:
                layer.self_attn.o_proj.weight.mul_(DAMPING)
                layer.mlp.down_proj.weight.mul_(DAMPING)
    if kind.quantization_config is not None:
        silence_int8_cast_notice()
        model = LlamaForCausalLM.from_pretrained(
            None,
            config=model.config,
            state_dict=model.state_dict(),
            dtype=dtype,
            attn_implementation="sdpa",
            quantization_config=kind.quantization_config(dtype),
            device_map={"": device},
        )
    return causal_model(model, name=RANDOM + name, compression=compression, dtype=dtype, device=device)


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """One token a byte, ids 0 to 255, for models without a tokenizer."""
    space = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves in GPT-2's alphabet
    letters = {byte: chr(byte) for byte in space}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in letters)}
    vocabulary = {letters[byte]: byte for byte in range(256)}
    nothing: dict[str, Any] = {"eos_token": None, "pad_token": None, "bos_token": None}
    tokenizer: PreTrainedTokenizerBase = Qwen2Tokenizer(vocab=vocabulary, merges=[], unk_token=letters[0], **nothing)
    return tokenizer


def load_random(config: PairConfig) -> ModelPair:
    """A pair of two shapes named after the prefix `RANDOM`; the draft may be "self", the target's first layers."""
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    own = config.draft == "self"
    target = random_model(
        config.target.removeprefix(RANDOM),
        dtype=dtype,
        device=device,
        compression=config.compression,
        calm_after=config.draft_layers if own else None,
    )
    if own:
        draft = first_layers(target, config.draft_layers)
        # A copy of its own: transformers' assisted generation takes its settings from there.
        draft.hf.generation_config = copy.deepcopy(target.hf.generation_config)
    else:
        shape = config.draft.removeprefix(RANDOM)
        draft = random_model(shape, dtype=dtype, device=device, compression=config.draft_compression, seed=1)
    return ModelPair(
        config=config, target=target, draft_model=draft, tokenizer=byte_tokenizer(), eos_token_ids=frozenset()
    )


def random_pair(settings: Settings, draft: str = "self", *, dtype: str = "auto") -> PairConfig:
    """The Llama pair, tiny in a rehearsal; `draft` is a shape, or "self" for the target's own first layers."""
    if settings.tiny:
        name, draft = "tiny-target", "self" if draft == "self" else "tiny-draft"
    else:
        name = "llama-3.1-8b"
    layers = max(1, SHAPES[name].layers // 8) if draft == "self" else 0
    shown = f"{name} with {'its first ' + str(layers) + ' layers' if draft == 'self' else draft}, random weights"
    return PairConfig(
        target=RANDOM + name,
        draft=draft if draft == "self" else RANDOM + draft,
        name=shown,
        dtype="float32" if settings.tiny and dtype == "auto" else dtype,
        device=settings.device,
        draft_layers=layers,
        chat_template=False,
    )


def real_pair(settings: Settings, *, dtype: str = "auto") -> PairConfig | None:
    """The Qwen pair, or None where its files are not there."""
    if not settings.weights or settings.tiny:
        return None
    files = qwen.files(Path(settings.weights))
    if not all(path.is_file() for path in files):
        return None
    return PairConfig(target=str(files[0]), draft=str(files[1]), name=qwen.NAME, dtype=dtype, device=settings.device)


def load(config: PairConfig) -> ModelPair:
    """Loads a pair from disk, or makes a random one."""
    return load_random(config) if config.target.startswith(RANDOM) else load_pair(config)


def main_pair(settings: Settings, *, dtype: str = "auto", compression: str = "fp16") -> ModelPair:
    """Qwen's pair where its weights are, else a random Llama drafted by its own layers."""
    config = real_pair(settings, dtype=dtype) or random_pair(settings, dtype=dtype)
    return load(replace(config, compression=compression))


def is_random(pair: ModelPair) -> bool:
    """Whether a pair's weights are random, so that its acceptance rate means nothing."""
    return pair.config.target.startswith(RANDOM)


def graphs(pair: ModelPair) -> dict[str, str]:
    """How passes have run so far: "captured" as CUDA graphs, "kernel by kernel", or why capturing failed."""

    def describe(model: CausalModel) -> str:
        return "; ".join(model.graph_faults) or ("captured" if model.replays_graphs else "kernel by kernel")

    return {"target": describe(pair.target), "draft": describe(pair.draft)}


# -- prompts -----------------------------------------------------------------------------------------------------------

MEASURED = {
    "code-1": "Write a Python function that merges overlapping intervals, with a docstring and two examples.",
    "code-2": "Write a SQL query that lists the ten customers with the highest total of paid orders in 2023.",
    "math-1": "A train leaves at 9:40 and arrives at 13:05, with a stop of 20 minutes. How long did it move? Reason "
    "step by step.",
    "math-2": "Find all whole numbers n with n * n - 7 * n + 10 = 0 and explain each step.",
    "chat-1": "I have two days in Lisbon and like music and food. What should I do?",
    "chat-2": "Explain to a friend who has never programmed what a database index is.",
    "summary-1": "Summarize in three sentences: Honeybees tell their nest mates where food is by dancing. The angle of "
    "the dance against the vertical gives the direction against the sun, its length gives the distance, and its vigour "
    "how good the food is. Bees that follow the dance then fly out and search near the spot. The dance was decoded by "
    "Karl von Frisch, who received a Nobel prize for it in 1973.",
    "summary-2": "Summarize in two sentences: The committee met on Tuesday and discussed the new timetable. Teachers "
    "wanted longer breaks, parents wanted an earlier end, and the bus company asked for a start that does not fall "
    "into the rush hour. A proposal that starts at 8:15 and keeps two long breaks found a majority; it will be tried "
    "for one year from September.",
}
"""Name -> prompt, in the four tasks of the shipped traces. Results are of these."""

TUNING = {
    "code-0": "Write a function in C that counts the words of a string.",
    "math-0": "What is 17 percent of 2,450? Show the steps.",
    "chat-0": "Give me five ideas for a rainy Sunday with children.",
    "summary-0": "Summarize in one sentence: The museum reopens in May after three years of work. Its roof is new, the "
    "entrance has moved to the park, and tickets are free on Mondays.",
}
"""Name -> prompt. The best fixed gamma is chosen on these."""
