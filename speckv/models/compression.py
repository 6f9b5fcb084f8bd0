# SPDX-License-Identifier: Apache-2.0
"""Compressions of a model: a registry from name to what loading must do."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from speckv.errors import CompressionError, nearest
from speckv.types import BITS_PER_WEIGHT

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """How to load a model under one compression.

    Attributes:
        name: As users write it.
        bits_per_weight: Nominal storage.
        quantization_config: Builds what `from_pretrained` takes, from the compute dtype; None means unquantised.
        devices: Device types it runs on.
        captures_graphs: Whether CUDA graphs can hold its kernels; one that looks at its data on the host cannot be.
    """

    name: str
    bits_per_weight: float
    quantization_config: Callable[[torch.dtype], Any] | None
    devices: tuple[str, ...] = ("cpu", "cuda")
    captures_graphs: bool = True


def _int8(dtype: torch.dtype) -> BitsAndBytesConfig:
    del dtype
    return BitsAndBytesConfig(load_in_8bit=True)


def _nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


COMPRESSION_KINDS: dict[str, Compression] = {
    "fp16": Compression(name="fp16", bits_per_weight=16.0, quantization_config=None),
    "int8": Compression(name="int8", bits_per_weight=8.0, quantization_config=_int8, captures_graphs=False),
    "nf4": Compression(name="nf4", bits_per_weight=4.0, quantization_config=_nf4),
}


def register_compression(kind: Compression) -> None:
    """Adds a compression under its name, for loading and for what controllers see; an existing name is replaced.

    Anything that `from_pretrained` takes as `quantization_config` will do: FP8, torchao, HQQ. For a checkpoint that is
    stored quantised, AWQ or GPTQ, it is None: what the checkpoint says of itself is what is loaded.

    >>> register_compression(Compression(name="awq", bits_per_weight=4.0, quantization_config=None, devices=("cuda",)))
    >>> "awq" in COMPRESSION_KINDS
    True
    >>> del COMPRESSION_KINDS["awq"], BITS_PER_WEIGHT["awq"]
    """
    COMPRESSION_KINDS[kind.name] = kind
    BITS_PER_WEIGHT[kind.name] = kind.bits_per_weight


def get_compression(name: str, device: torch.device) -> Compression:
    """Looks a compression up for a device.

    Raises:
        CompressionError: if it is unknown or the device cannot run it.
    """
    if name not in COMPRESSION_KINDS:
        known = sorted(COMPRESSION_KINDS)
        raise CompressionError(f"Expected a compression in {known}, got {name!r}." + nearest(name, known))
    kind = COMPRESSION_KINDS[name]
    if device.type not in kind.devices:
        raise CompressionError(
            f"Compression {name!r} runs on {', '.join(kind.devices)}, got device {device}. "
            "Choose another compression or device."
        )
    return kind


def silence_int8_cast_notice() -> None:
    """Drops the one warning that bitsandbytes' INT8 layer repeats for every layer and call."""
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_no_cast_notice)


def _is_no_cast_notice(record: logging.LogRecord) -> bool:
    return "will be cast" not in record.getMessage()
