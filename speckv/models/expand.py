# SPDX-License-Identifier: Apache-2.0
"""Compressed layers as dense ones that compute the same function: what recording needs, never used where time is taken.

bitsandbytes decodes or re-quantises inside every forward pass, which is what a live run pays for. A recording needs the
numbers that come out, not that time, so each layer is decoded once into the weights and the rounding that it applies.
"""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speckv.models.linear import use_narrow_linear

INT8_STEPS = 127.0
Layer = TypeVar("Layer", bound=nn.Linear)


class RowwiseInt8Linear(nn.Linear):
    """LLM.int8() of bitsandbytes, each row treated as a pass of its own.

    A row's values of magnitude `threshold` or more stay as they are, the others are rounded to 127 steps of the largest
    among them; the weight holds its rounded values. bitsandbytes takes the *columns* of all outliers in a pass out of
    the rounding, for all its rows, so a pass of several rows differs slightly with its company. Row by row is what
    plain decoding, one token a pass, computes.

    Source:
        Dettmers et al. 2022, arXiv:2208.07339; bitsandbytes 0.50, `int8_vectorwise_quant` and `int8_mixed_scaled_mm`.
    """

    threshold: float = 6.0

    def forward(self, input: Tensor) -> Tensor:
        """Applies the layer to `[..., in_features]`."""
        half = input.to(torch.float16)
        outlier = half.abs() >= self.threshold
        regular = half.masked_fill(outlier, 0)
        largest = regular.abs().amax(-1, keepdim=True).float().clamp(min=1e-12)
        rounded = torch.round(regular * (INT8_STEPS / largest)) * (largest / INT8_STEPS)
        return F.linear(torch.where(outlier, input, rounded.to(input.dtype)), self.weight, self.bias)


def expand_compressed(model: nn.Module, dtype: torch.dtype) -> int:
    """Replaces the INT8 and 4-bit layers of a model by dense ones, in place.

    Args:
        model: Any module; layers that are not compressed stay as they are.
        dtype: Of the dense weights: the one the model computes in.

    Returns:
        Number of layers replaced.
    """
    import bitsandbytes as bnb

    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            dense: nn.Linear
            if isinstance(child, bnb.nn.Linear4bit):
                dense = _dense(nn.Linear, child, _decode_4bit(child), dtype)
            elif isinstance(child, bnb.nn.Linear8bitLt):
                rounding = _dense(RowwiseInt8Linear, child, _decode_int8(child), dtype)
                rounding.threshold = float(child.state.threshold)
                dense = rounding
            else:
                continue
            setattr(parent, name, dense)
            count += 1
    use_narrow_linear(model)
    return count


def _decode_4bit(layer: Any) -> Tensor:
    import bitsandbytes as bnb

    weight: Tensor = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight.reshape(layer.out_features, layer.in_features)


def _decode_int8(layer: Any) -> Tensor:
    # The codes lie in the parameter until the first forward pass, in the state afterwards.
    codes = layer.weight.CB if layer.weight.CB is not None else layer.state.CB
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    weight: Tensor = codes.float() * (scales.float()[:, None] / INT8_STEPS)
    return weight


def _dense(kind: type[Layer], like: Any, weight: Tensor, dtype: torch.dtype) -> Layer:
    layer = kind(like.in_features, like.out_features, bias=like.bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if like.bias is not None:
        layer.bias = nn.Parameter(like.bias.data.to(dtype), requires_grad=False)
    return layer
