# SPDX-License-Identifier: Apache-2.0
"""Compressions of a model: a registry of loading settings, and fast equivalents for recording."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from speckv.errors import CompressionError, nearest
from speckv.models.linear import use_fast_linear
from speckv.types import BITS_PER_WEIGHT

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """How to load a model under one compression.

    Attributes:
        quantization_config: Compute dtype -> argument of `from_pretrained`; None means as stored.
        captures_graphs: Whether CUDA graphs can hold its kernels, which must not read data on the host.
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
    """Adds a compression under its name, or replaces it; `quantization_config` is None for a quantised checkpoint.

    >>> register_compression(Compression(name="awq", bits_per_weight=4.0, quantization_config=None, devices=("cuda",)))
    >>> "awq" in COMPRESSION_KINDS
    True
    >>> del COMPRESSION_KINDS["awq"], BITS_PER_WEIGHT["awq"]
    """
    COMPRESSION_KINDS[kind.name] = kind
    BITS_PER_WEIGHT[kind.name] = kind.bits_per_weight


def get_compression(name: str, device: torch.device) -> Compression:
    """Raises CompressionError if the compression is unknown or the device cannot run it."""
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
    """Drops a warning that bitsandbytes' INT8 layers repeat at every call."""
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_no_cast_notice)


def _is_no_cast_notice(record: logging.LogRecord) -> bool:
    return "will be cast" not in record.getMessage()


INT8_STEPS = 127.0
ROWS_AT_ONCE = 512
"""Few enough rows to stay in the processor's caches."""


class RowwiseInt8Linear(nn.Module):
    """LLM.int8() of bitsandbytes, with each row rounded on its own, as in plain decoding of one token a pass.

    Values of magnitude `threshold` or more stay as they are, the others are rounded to 127 steps of the row's largest.
    bitsandbytes leaves the *columns* of a pass's outliers unrounded, so that rows depend slightly on each other.
    `codes` are int8 [out_features, in_features]; `scale`, float32 [out_features], is the value of one step.

    Source: Dettmers et al. 2022, arXiv:2208.07339; bitsandbytes 0.50, `int8_vectorwise_quant` and
    `int8_mixed_scaled_mm`.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None, threshold: float) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self.threshold = threshold
        self._integers = codes.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"

    def forward(self, input: Tensor) -> Tensor:
        """Applies the layer to `[..., in_features]`."""
        rows = input.reshape(-1, input.shape[-1])
        parts = [self._multiply(part) for part in torch.split(rows, ROWS_AT_ONCE)]
        return torch.cat(parts).reshape(*input.shape[:-1], len(self.codes))

    def _multiply(self, rows: Tensor) -> Tensor:
        half = rows.to(torch.float16)
        # As in bitsandbytes, a threshold of 0 means that there are no outliers.
        outlier = half.abs() >= (self.threshold or torch.inf)
        regular = half.masked_fill(outlier, 0)
        largest = regular.abs().amax(-1, keepdim=True).float().clamp(min=1e-12)
        steps = torch.round(regular * (INT8_STEPS / largest))
        if self._integers:  # exact, and several times as fast as a product of floats
            product = torch._int_mm(steps.to(torch.int8), self.codes.t()).float()
        else:
            product = steps @ self.codes.t().float()
        product *= largest / INT8_STEPS
        columns = outlier.any(0).nonzero()[:, 0]
        if len(columns):
            kept = torch.where(outlier[:, columns], rows[:, columns].float(), 0.0)
            product += kept @ self.codes[:, columns].t().float()
        product *= self.scale
        if self.bias is not None:
            product += self.bias
        return product.to(rows.dtype)


def expand_compressed(model: nn.Module, dtype: torch.dtype) -> int:
    """Replaces INT8 and 4-bit layers by equivalents of the same function, in place; returns their number.

    For recording, never where time is measured. 4-bit weights are decoded once, to the `dtype` of the arithmetic.
    """
    import bitsandbytes as bnb

    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, bnb.nn.Linear4bit):
                setattr(parent, name, _dense(child, dtype))
            elif isinstance(child, bnb.nn.Linear8bitLt):
                setattr(parent, name, _row_by_row(child, dtype))
            else:
                continue
            count += 1
    use_fast_linear(model)
    return count


def _dense(layer: Any, dtype: torch.dtype) -> nn.Linear:
    import bitsandbytes as bnb

    weight: Tensor = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    dense = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    dense.weight = nn.Parameter(weight.reshape(layer.out_features, layer.in_features).to(dtype), requires_grad=False)
    if layer.bias is not None:
        dense.bias = nn.Parameter(layer.bias.data.to(dtype), requires_grad=False)
    return dense


def _row_by_row(layer: Any, dtype: torch.dtype) -> RowwiseInt8Linear:
    # The codes lie in the parameter until the first forward pass, in the state afterwards.
    codes = layer.weight.CB if layer.weight.CB is not None else layer.state.CB
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    bias = layer.bias.data.to(dtype) if layer.bias is not None else None
    return RowwiseInt8Linear(codes.data, scales.data.float() / INT8_STEPS, bias, float(layer.state.threshold))
