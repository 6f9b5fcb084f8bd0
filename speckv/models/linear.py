# SPDX-License-Identifier: Apache-2.0
"""A matrix product for the few rows of a verify pass, where the stock one wastes a CPU.

`F.linear(x, weight)` asks BLAS for `x @ weight.T`. With 2 to 64 rows in float32, MKL's kernel for that layout is slow
on some CPUs: on an AVX2 EPYC, 5 rows took 9.7 ms and the transposed product 4.2 ms for a weight of 8960 x 1536.
Verification lives exactly there, so the faster order is measured once per process and used if it wins.
"""

import functools
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NARROW_ROWS = range(2, 129)
"""Row counts for which the transposed product is used, where it is used at all."""


class NarrowLinear(nn.Linear):
    """`nn.Linear` that multiplies few rows as `(weight @ x.T).T`; same values up to rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """Applies the layer to `[..., in_features]`."""
        rows = input.numel() // self.in_features
        if rows not in NARROW_ROWS:
            return F.linear(input, self.weight, self.bias)
        flat = input.reshape(rows, self.in_features)
        product = torch.mm(self.weight, flat.t()).t().contiguous()
        if self.bias is not None:
            product = product + self.bias
        return product.reshape(*input.shape[:-1], self.out_features)


def use_narrow_linear(model: nn.Module) -> int:
    """Switches every float32 CPU `nn.Linear` of a model to `NarrowLinear` if that is faster on this machine.

    Returns:
        Number of layers switched.
    """
    if not narrow_product_wins():
        return 0
    layers = [
        m
        for m in model.modules()
        if type(m) is nn.Linear and m.weight.device.type == "cpu" and m.weight.dtype == torch.float32
    ]
    for layer in layers:
        layer.__class__ = NarrowLinear
    return len(layers)


@functools.cache
def narrow_product_wins(rows: int = 5) -> bool:
    """Whether the transposed product took under 0.9 of the stock one's time here, measured now (about 0.3 s)."""
    weights = [torch.randn(6144, 1536) for _ in range(3)]
    stock, narrow = nn.Linear(1536, 6144, bias=False), NarrowLinear(1536, 6144, bias=False)
    x = torch.randn(rows, 1536)
    return _median_seconds(narrow, weights, x) < 0.9 * _median_seconds(stock, weights, x)


def _median_seconds(layer: nn.Linear, weights: list[Tensor], x: Tensor, repeats: int = 9) -> float:
    seconds = []
    with torch.inference_mode():
        for i in range(repeats + 3):
            layer.weight.data = weights[i % len(weights)]  # another matrix each time, so that caches do not flatter
            start = time.perf_counter()
            layer(x)
            seconds.append(time.perf_counter() - start)
    return sorted(seconds[3:])[repeats // 2]
