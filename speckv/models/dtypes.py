# SPDX-License-Identifier: Apache-2.0
"""Which arithmetic a pair runs in: named by the user, or what measures fastest."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from speckv.errors import ConfigError, nearest
from speckv.models.linear import (
    fewest_widened_rows,
    median_seconds,
    transposed_product,
    widened_product,
    widest_narrow_product,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
VERIFY_ROWS = 5
"""Rows of a typical verify pass (gamma 4)."""

DRAFTING, EMITTED = 4 / 3, 3.3
"""A step of gamma 4 with a draft of a third of the target's size: target passes of one row that drafting takes, and
tokens that come of it, as on the shipped recordings."""


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turns "auto" or a dtype's name into a dtype.

    On CUDA, "auto" is bfloat16 where the GPU has it, else float16. On a CPU it is whichever of bfloat16 and float32
    takes less time a token, plain or speculating, whatever is faster in it, by products that are timed once per
    process. CPUs without instructions for bfloat16 multiply one row fast, because half as many bytes are read, and the
    rows of a verify pass slowly: plain decoding in bfloat16 is then the fastest there is, and float32 is where
    speculation pays most.

    Raises:
        ConfigError: for an unknown name.
    """
    if name == "auto":
        if device.type == "cuda":
            with torch.cuda.device(device):  # which is not the one that is asked otherwise
                native = torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if native else torch.float16
        return fastest_cpu_dtype()
    if name not in DTYPES:
        raise ConfigError(f"Expected dtype auto or one of {sorted(DTYPES)}, got {name!r}." + nearest(name, [*DTYPES]))
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Returns "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")


@functools.cache
def fastest_cpu_dtype() -> torch.dtype:
    """The one of float32 and bfloat16 whose better way to decode, plain or with gamma 4, is faster on this CPU."""
    return min(
        (torch.float32, torch.bfloat16),
        key=lambda dtype: seconds_a_token(_product_s(dtype, 1), _product_s(dtype, VERIFY_ROWS)),
    )


def seconds_a_token(one_row: float, verify_rows: float) -> float:
    """Time a token of plain decoding or of speculation, whichever is less, by the times of two products.

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
