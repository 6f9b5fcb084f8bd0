# SPDX-License-Identifier: Apache-2.0
"""A target and its draft: loaded, checked and described."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from speckv.errors import ConfigError, ModelError, device_error, device_errors_explained, nearest
from speckv.models.cache import has_special_layers, require_rollback
from speckv.models.causal import CausalModel, with_vocabulary
from speckv.models.compression import get_compression, silence_int8_cast_notice
from speckv.models.defaults import GenerationDefaults
from speckv.models.dtypes import resolve_dtype
from speckv.models.gguf import refuse_incomplete
from speckv.models.kernels import warn_if_slow
from speckv.models.linear import use_fast_linear
from speckv.models.parts import context_limit, decoder_of, with_modules
from speckv.models.tokenizer import encode_prompt, load_error, load_tokenizer, locate, vocabulary_hash

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairConfig:
    """What to load.

    Attributes:
        target: Hub id, local folder or GGUF file.
        draft: The same, "self" for the target's own first `draft_layers` layers (all of them at 0), or "lookup" for
            what followed the newest tokens earlier in the text, without a model.
        name: For tables; the target's by default.
        device: "auto", "cpu", "cuda", "cuda:1".
        lookup_longest: Most tokens that a "lookup" draft matches.
        static_cache: Whether caches stay in fixed buffers, with passes captured as graphs on CUDA; None means on CUDA
            if the model's attention allows it.
    """

    target: str
    draft: str
    name: str = ""
    compression: str = "fp16"
    draft_compression: str = "fp16"
    dtype: str = "auto"
    device: str = "auto"
    draft_layers: int = 0
    lookup_longest: int = 4
    lookup_shortest: int = 2
    chat_template: bool = True
    static_cache: bool | None = None

    @property
    def draft_name(self) -> str:
        """Name of the draft as recordings have it; "" for all of the target's own layers."""
        if self.draft == "lookup":
            return f"prompt-lookup({self.lookup_longest},{self.lookup_shortest})"
        if self.draft == "self":
            return f"{self.target}[:{self.draft_layers}]" if self.draft_layers else ""
        return self.draft


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPair:
    """A target, and a draft with the same tokenizer, or None for a "lookup"; `eos_token_ids` are the target's."""

    config: PairConfig
    target: CausalModel
    draft_model: CausalModel | None
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: frozenset[int]

    @property
    def draft(self) -> CausalModel:
        """Raises ModelError if there is no draft model."""
        if self.draft_model is None:
            raise ModelError(
                f"Expected a pair with a draft model, got model.draft={self.config.draft}, which has none. Choose a "
                "model, or draft with what speckv.decoding.draft_source gives."
            )
        return self.draft_model

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt, as a user's turn if the pair has a chat template."""
        return encode_prompt(self.tokenizer, prompt, chat_template=self.config.chat_template)

    def decode(self, tokens: list[int]) -> str:
        """Text without special tokens."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def tokenizer_sha256(self) -> str:
        """Hash of the vocabulary."""
        return vocabulary_hash(self.tokenizer)


@device_errors_explained()
def load_pair(config: PairConfig) -> ModelPair:
    """Loads both models, or the target alone for a "lookup", and checks that their vocabularies fit.

    Raises:
        ModelError: if one is missing, gated or damaged, or their vocabularies differ.
        CompressionError: if the device cannot run the compression.
        ConfigError: for an unknown device or dtype.
        DeviceError: if a device runs out of memory.
    """
    silence_int8_cast_notice()
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    where: dict[str, Any] = {"dtype": dtype, "device": device, "static_cache": config.static_cache}
    target = load_model(config.target, compression=config.compression, **where)
    tokenizer = load_tokenizer(str(target.source or target.name))
    draft: CausalModel | None = None
    if config.draft == "self":
        draft = first_layers(target, config.draft_layers)
    elif config.draft != "lookup":
        draft = load_model(config.draft, compression=config.draft_compression, **where)
        if vocabulary_hash(tokenizer) != vocabulary_hash(load_tokenizer(str(draft.source or draft.name))):
            raise ModelError(
                f"Expected target and draft to share one tokenizer; those of {target.name} and {draft.name} map words "
                "to different ids. Choose a draft of the target's family."
            )
        draft = with_vocabulary(draft, target.vocab_size)
    eos_token_ids = target.defaults.eos_token_ids if target.defaults else frozenset[int]()
    return ModelPair(config=config, target=target, draft_model=draft, tokenizer=tokenizer, eos_token_ids=eos_token_ids)


def resolve_device(name: str) -> torch.device:
    """Resolves "auto" or a device's name; ConfigError if it is unknown or absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"Expected device auto, cpu, cuda or cuda:N, got {name!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "Expected a CUDA device for device=cuda, found none. Use device=cpu or install a CUDA build of torch."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"Expected one of {torch.cuda.device_count()} CUDA devices, from cuda:0 on, got {name!r}. Name another one."
        )
    return device


def load_model(
    source: str, *, compression: str, dtype: torch.dtype, device: torch.device, static_cache: bool | None = None
) -> CausalModel:
    """Loads a hub id, a folder or a GGUF file; errors are those of `load_pair`."""
    kind = get_compression(compression, device)
    location = locate(source)
    arguments: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa"}
    if kind.quantization_config is not None:
        arguments["quantization_config"] = kind.quantization_config(dtype)
        arguments["device_map"] = {"": device}
    loaded: Any
    try:
        loaded = AutoModelForCausalLM.from_pretrained(location, output_loading_info=True, **arguments)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise device_error(error) or load_error(source, error) from error
    model, report = loaded
    refuse_incomplete(source, report)
    if kind.quantization_config is None:
        model = model.to(device)
    warn_if_slow(compression, dtype, device)
    folder = Path(location)
    prepared = causal_model(
        model,
        name=source,
        compression=compression,
        dtype=dtype,
        device=device,
        static_cache=static_cache,
        source=folder if folder.is_dir() else None,
    )
    return replace(prepared, defaults=GenerationDefaults(model, source))


def causal_model(
    model: PreTrainedModel,
    *,
    name: str,
    compression: str,
    dtype: torch.dtype,
    device: torch.device,
    static_cache: bool | None = None,
    source: Path | None = None,
) -> CausalModel:
    """Makes a transformers model ready to decode, in place. ConfigError or ModelError if its cache is unsupported."""
    require_rollback(model, name)
    return CausalModel(
        name=name,
        hf=freeze(model),
        compression=compression,
        dtype=dtype,
        device=device,
        vocab_size=int(model.config.get_text_config().vocab_size),
        context_limit=context_limit(model),
        source=source,
        static=_is_static(model, static_cache, device),
        captures_graphs=get_compression(compression, device).captures_graphs and not _waits_for_device(model),
    )


def first_layers(target: CausalModel, layers: int) -> CausalModel:
    """A draft of the target's first layers and head, with shared weights; 0 means all layers."""
    total = int(target.hf.config.num_hidden_layers)
    if not 0 <= layers <= total:
        raise ConfigError(f"Expected draft_layers in 0..{total} for {target.name}, got {layers}.")
    keep = layers or total
    config = copy.deepcopy(target.hf.config)
    config.num_hidden_layers = keep
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:keep]
    decoder = decoder_of(target.hf)
    stack = _layer_list(decoder, total)
    shallow = with_modules(target.hf, {stack: nn.ModuleList(list(stack)[:keep])})
    for part in (shallow, decoder_of(shallow)):
        part.config = config
    return replace(target.sharing(shallow), name=f"{target.name}[:{keep}]", defaults=None)


def _layer_list(decoder: nn.Module, total: int) -> nn.ModuleList:
    for child in decoder.children():
        if isinstance(child, nn.ModuleList) and len(child) == total:
            return child
    raise ConfigError(f"Expected a decoder with one list of layers for model.draft=self, got {type(decoder).__name__}.")


def _waits_for_device(model: nn.Module) -> bool:
    """INT8 layers, whatever the compression is called, search for outliers on the host."""
    return any(type(module).__name__ == "Linear8bitLt" for module in model.modules())


def _is_static(model: PreTrainedModel, wanted: bool | None, device: torch.device) -> bool:
    plain = not has_special_layers(model)
    if wanted and not plain:
        raise ConfigError(
            "Expected a model whose layers all attend to the whole context for static_cache=true, got one with "
            "windows. Leave static_cache out."
        )
    return wanted if wanted is not None else device.type == "cuda" and plain


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Sets evaluation mode, no gradients and fast products, in place."""
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    use_fast_linear(model)
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(_plain_strides)
    return model


def _plain_strides(head: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies the rows that are scored if they are a slice of more.

    PyTorch calls the last row of a wider pass contiguous, yet its product copies the head's whole weight first: 270 MB
    for 0.5B parameters, 0.4 s of a pass that takes 0.1 s.
    """
    del head
    rows = arguments[0]
    if rows.stride() != torch.empty(rows.shape, device="meta").stride():
        rows = rows.clone(memory_format=torch.contiguous_format)
    return (rows, *arguments[1:])


_BESIDE = ("folder", "target_gguf", "draft_gguf")


def choose_pair(model: Mapping[str, Any]) -> PairConfig:
    """Builds a `PairConfig` from its fields, and `folder`, `target_gguf`, `draft_gguf`; ConfigError for others.

    With `folder`, target and draft are GGUF files inside it, except for a draft "self" or "lookup".
    """
    known = [*PairConfig.__dataclass_fields__, *_BESIDE]
    for key in model:
        if key not in known:
            raise ConfigError(f"Unknown setting 'model.{key}'; known here: {known}.{nearest(str(key), known)}")
    fields = {name: value for name, value in model.items() if name not in _BESIDE}
    folder = model.get("folder")
    if folder is not None:
        if not model.get("target_gguf"):
            raise ConfigError(
                f"Expected model.target and model.draft for {model.get('name')}: it has no usual GGUF names."
            )
        fields["target"] = str(Path(folder) / model["target_gguf"])
        if model.get("draft_gguf") and model.get("draft") not in ("self", "lookup"):
            fields["draft"] = str(Path(folder) / model["draft_gguf"])
    return PairConfig(**fields)
