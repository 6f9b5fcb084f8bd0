# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for compressed layers that compute the same function: what recording needs, never used where time is taken.

bitsandbytes decodes or re-quantises inside every forward pass, which is what a live run pays for. A recording needs the
numbers that come out, not that time: 4-bit weights are decoded once, INT8 rows are rounded each on its own.
"""

from typing import Any

import torch
from torch import Tensor, nn

from speckv.models.linear import use_fast_linear

INT8_STEPS = 127.0
ROWS_AT_ONCE = 512
"""Rows that a layer works on together: few enough to stay in the processor's caches."""


class RowwiseInt8Linear(nn.Module):
    """LLM.int8() of bitsandbytes, each row treated as a pass of its own.

    A row's values of magnitude `threshold` or more stay as they are, the others are rounded to 127 steps of the largest
    among them; the weight holds its rounded values. bitsandbytes takes the *columns* of all outliers in a pass out of
    the rounding, for all its rows, so a pass of several rows differs slightly with its company. Row by row is what
    plain decoding, one token a pass, computes; only the prompt it reads in one.

    Args:
        codes: Int8 of shape [out_features, in_features].
        scale: Float32 of shape [out_features]; the value of one step of each output's codes.
        bias: Shape [out_features], or None.
        threshold: From which magnitude on a value is an outlier.

    Source:
        Dettmers et al. 2022, arXiv:2208.07339; bitsandbytes 0.50, `int8_vectorwise_quant` and `int8_mixed_scaled_mm`.
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
    """Replaces the INT8 and 4-bit layers of a model by such stand-ins, in place.

    Args:
        model: Any module; layers that are not compressed stay as they are.
        dtype: The one the model computes in.

    Returns:
        Number of layers replaced.
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
