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
"""Rows of a typical verify pass (gamma 4), the width at which candidates are compared."""


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turns "auto" or a dtype's name into a dtype.

    On CUDA, "auto" is bfloat16 where the GPU has it, else float16. On a CPU it is whichever of bfloat16 and float32
    multiplies the rows of a verify pass faster, measured once per process: CPUs without native bfloat16 emulate it at a
    tenth of float32's speed as soon as there is more than one row.

    Raises:
        ConfigError: for an unknown name.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return fastest_cpu_dtype()
    if name not in DTYPES:
        raise ConfigError(f"Expected dtype auto or one of {sorted(DTYPES)}, got {name!r}." + nearest(name, [*DTYPES]))
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Returns "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")


@functools.cache
def fastest_cpu_dtype() -> torch.dtype:
    """The faster of float32 and bfloat16 for a verify pass on this CPU."""
    return min((torch.float32, torch.bfloat16), key=_verify_seconds)


def _verify_seconds(dtype: torch.dtype) -> float:
    weights = [torch.randn(6144, 1536).to(dtype) for _ in range(3)]
    x = torch.randn(VERIFY_ROWS, 1536).to(dtype)
    product: Callable[[Tensor, Tensor], Tensor] = F.linear
    if dtype == torch.float32 and widest_narrow_product() >= VERIFY_ROWS:
        product = transposed_product
    if dtype == torch.bfloat16 and (fewest_widened_rows() or VERIFY_ROWS + 1) <= VERIFY_ROWS:
        product = widened_product
    return median_seconds(product, weights, x)
