# SPDX-License-Identifier: Apache-2.0
"""A matrix product for the few rows of a verify pass, where the stock one wastes a CPU.

`F.linear(x, weight)` asks BLAS for `x @ weight.T`. With 2 to 64 rows in float32, MKL's kernel for that layout is slow
on some CPUs: on an AVX2 EPYC, 5 rows took 9.7 ms and the transposed product 4.2 ms for a weight of 8960 x 1536.
Verification lives exactly there, so the faster order is measured once per process, at several row counts, and used up
to where it stops winning.
"""

import functools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROBED_ROWS = (5, 17, 64, 128)
"""Row counts at which the two orders are timed."""


class NarrowLinear(nn.Linear):
    """`nn.Linear` that multiplies few rows as `(weight @ x.T).T`; same values up to rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """Applies the layer to `[..., in_features]`."""
        rows = input.numel() // self.in_features
        if not 2 <= rows <= widest_narrow_product():
            return F.linear(input, self.weight, self.bias)
        flat = input.reshape(rows, self.in_features)
        product = transposed_product(flat, self.weight)
        if self.bias is not None:
            product = product + self.bias
        return product.reshape(*input.shape[:-1], self.out_features)


def use_narrow_linear(model: nn.Module) -> int:
    """Switches every float32 CPU `nn.Linear` of a model to `NarrowLinear` if that is faster on this machine.

    Returns:
        Number of layers switched.
    """
    if widest_narrow_product() == 0:
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
def widest_narrow_product() -> int:
    """Most rows for which the transposed product took under 0.9 of the stock one's time here, 0 if none.

    Measured now, once per process, in under a second.
    """
    weights = [torch.randn(6144, 1536) for _ in range(3)]
    widest = 0
    for rows in PROBED_ROWS:
        x = torch.randn(rows, 1536)
        if median_seconds(transposed_product, weights, x) >= 0.9 * median_seconds(F.linear, weights, x):
            break
        widest = rows
    return widest


def transposed_product(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(x, weight)` for x of shape [rows, in_features], with the weight on the left."""
    return torch.mm(weight, x.t()).t().contiguous()


def median_seconds(
    product: Callable[[Tensor, Tensor], Tensor], weights: list[Tensor], x: Tensor, repeats: int = 9
) -> float:
    """Median time of `product(x, weight)` on weights that take turns."""
    seconds = []
    with torch.inference_mode():
        for i in range(repeats + 3):
            weight = weights[i % len(weights)]  # another matrix each time, so that caches do not flatter
            start = time.perf_counter()
            product(x, weight)
            seconds.append(time.perf_counter() - start)
    return sorted(seconds[3:])[repeats // 2]
