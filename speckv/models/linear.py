# SPDX-License-Identifier: Apache-2.0
"""Faster matrix products on CPUs for the few rows of a verify pass, and for prompts.

float32: for 2 to 64 rows MKL's `x @ weight.T` is slow on some CPUs. On an AVX2 EPYC, 5 rows of a weight of 8960 x 1536
took 9.7 ms, the transposed product 4.2 ms. bfloat16: a CPU without instructions for it multiplies row by row. 17 rows
took 22 ms and 256 rows 331 ms; widened to float32 in blocks that fit the cache, 7 ms and 41 ms. Each alternative is
timed once per process, at several row counts, and used if it is faster.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speckv.errors import ConfigError, nearest

PROBED_ROWS = (5, 17, 64, 128)
PROBED_WIDE_ROWS = (3, 5, 9, 17, 33)
BLOCK_ROWS = 512
"""Rows of a weight widened at a time: 3 MB for 1536 features."""

_local = threading.local()


class NarrowLinear(nn.Linear):
    """`nn.Linear` that multiplies few rows as `(weight @ x.T).T`; equal up to rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """Applies the layer."""
        rows = input.numel() // self.in_features
        if not 2 <= rows <= widest_narrow_product():
            return F.linear(input, self.weight, self.bias)
        return _apply(self, input, transposed_product)


class WideningLinear(nn.Linear):
    """bfloat16 `nn.Linear` that widens its weight for many rows; sums are kept in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Applies the layer."""
        rows = input.numel() // self.in_features
        least = fewest_widened_rows()
        if least is None or rows < least:
            return F.linear(input, self.weight, self.bias)
        return _apply(self, input, widened_product)


def _apply(layer: nn.Linear, input: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    output = product(input.reshape(-1, layer.in_features), layer.weight)
    if layer.bias is not None:
        output = output + layer.bias
    return output.reshape(*input.shape[:-1], layer.out_features)


def use_fast_linear(model: nn.Module) -> int:
    """Switches `nn.Linear` layers on a CPU to the faster class for their dtype; returns their number."""
    layers = [m for m in model.modules() if type(m) is nn.Linear and m.weight.device.type == "cpu"]
    switched = 0
    for layer in layers:
        if layer.weight.dtype == torch.float32 and widest_narrow_product() > 0:
            layer.__class__ = NarrowLinear
        elif layer.weight.dtype == torch.bfloat16 and fewest_widened_rows() is not None:
            layer.__class__ = WideningLinear
        else:
            continue
        switched += 1
    return switched


@contextmanager
def stock_linear(*models: nn.Module) -> Iterator[None]:
    """Switches layers back to `nn.Linear`, for benchmarks of other software."""
    switched = [(m, type(m)) for model in models for m in model.modules() if type(m) in (NarrowLinear, WideningLinear)]
    try:
        for layer, _ in switched:
            layer.__class__ = nn.Linear
        yield
    finally:
        for layer, kind in switched:
            layer.__class__ = kind


@functools.cache
def widest_narrow_product() -> int:
    """Most rows for which the transposed product took under 0.9 of the stock time, 0 if none."""
    weights = [torch.randn(6144, 1536) for _ in range(3)]
    widest = 0
    for rows in PROBED_ROWS:
        x = torch.randn(rows, 1536)
        if median_seconds(transposed_product, weights, x) >= 0.9 * median_seconds(F.linear, weights, x):
            break
        widest = rows
    return widest


@functools.cache
def fewest_widened_rows() -> int | None:
    """Fewest rows for which widening bfloat16 took under 0.9 of the stock time, or None."""
    weights = [torch.randn(6144, 1536).to(torch.bfloat16) for _ in range(3)]
    for rows in PROBED_WIDE_ROWS:
        x = torch.randn(rows, 1536).to(torch.bfloat16)
        if median_seconds(widened_product, weights, x) < 0.9 * median_seconds(F.linear, weights, x):
            return rows
    return None


def transposed_product(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(x, weight)` of x [rows, in_features], with the weight on the left."""
    return torch.mm(weight, x.t()).t().contiguous()


def widened_product(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(x, weight)` of x [rows, in_features], with float32 sums, in x's dtype."""
    wide = x.float().t()
    out = torch.empty(len(weight), x.shape[0])
    room = _room(weight.shape[1])
    for begin in range(0, len(weight), BLOCK_ROWS):
        part = weight[begin : begin + BLOCK_ROWS]
        torch.mm(room[: len(part)].copy_(part), wide, out=out[begin : begin + len(part)])
    return out.t().to(x.dtype)


def _room(features: int) -> Tensor:
    rooms: dict[int, Tensor] = _local.__dict__.setdefault("rooms", {})
    if features not in rooms:
        with torch.inference_mode(mode=False):  # a tensor of inference mode could not be written to outside of it
            rooms[features] = torch.empty(BLOCK_ROWS, features)
    return rooms[features]


def median_seconds(
    product: Callable[[Tensor, Tensor], Tensor], weights: list[Tensor], x: Tensor, repeats: int = 9
) -> float:
    """Median time of `product(x, weight)`."""
    seconds = []
    with torch.inference_mode():
        for i in range(repeats + 3):
            weight = weights[i % len(weights)]  # another matrix each time, so that caches do not flatter
            start = time.perf_counter()
            product(x, weight)
            seconds.append(time.perf_counter() - start)
    return sorted(seconds[3:])[repeats // 2]


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
VERIFY_ROWS = 5
DRAFTING, EMITTED = 4 / 3, 3.3
"""A gamma-4 step on the shipped recordings: one-row target passes of drafting, and tokens emitted."""


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolves "auto" or a dtype's name; ConfigError for an unknown name.

    On CUDA, "auto" is bfloat16 if the GPU has it, else float16. On a CPU it is the one of bfloat16 and float32 that
    takes less time a token, in plain or speculative decoding, whichever is faster. CPUs without bfloat16 instructions
    read half as many bytes for one row and verify slowly: plain decoding is fastest in bfloat16, speculation gains most
    in float32.
    """
    if name == "auto":
        if device.type == "cuda":
            with torch.cuda.device(device):  # the check is of the current device
                native = torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if native else torch.float16
        return fastest_cpu_dtype()
    if name not in DTYPES:
        raise ConfigError(f"Expected dtype auto or one of {sorted(DTYPES)}, got {name!r}." + nearest(name, [*DTYPES]))
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype's name, such as "float32"."""
    return str(dtype).removeprefix("torch.")


@functools.cache
def fastest_cpu_dtype() -> torch.dtype:
    """The one of float32 and bfloat16 whose better way to decode, plain or with gamma 4, is faster here."""
    return min(
        (torch.float32, torch.bfloat16),
        key=lambda dtype: seconds_a_token(_product_s(dtype, 1), _product_s(dtype, VERIFY_ROWS)),
    )


def seconds_a_token(one_row: float, verify_rows: float) -> float:
    """The lesser time a token, of plain decoding and of speculation, from the times of two products.

    >>> round(seconds_a_token(4.3, 6.7), 2), seconds_a_token(2.0, 7.5)  # float32 and emulated bfloat16
    (3.77, 2.0)
    """
    return min(one_row, (DRAFTING * one_row + verify_rows) / EMITTED)


def _product_s(dtype: torch.dtype, rows: int) -> float:
    weights = [torch.randn(6144, 1536).to(dtype) for _ in range(3)]
    product: Callable[[Tensor, Tensor], Tensor] = F.linear
    if dtype == torch.float32 and 2 <= rows <= widest_narrow_product():
        product = transposed_product
    if dtype == torch.bfloat16 and rows >= (fewest_widened_rows() or rows + 1):
        product = widened_product
    return median_seconds(product, weights, torch.randn(rows, 1536).to(dtype))
