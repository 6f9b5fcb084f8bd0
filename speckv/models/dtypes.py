# SPDX-License-Identifier: Apache-2.0
"""Number formats of models: names, and the one that "auto" means on a device."""

import functools

import torch

from speckv.errors import ConfigError, nearest
from speckv.models.linear import seconds_by_rows

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
VERIFY_ROWS = 5
DRAFTING, EMITTED = 4 / 3, 3.3
"""A gamma-4 step on the shipped recordings: one-row target passes of drafting, and tokens emitted."""


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolves "auto" or a dtype's name; ConfigError for an unknown name.

    On CUDA, "auto" is bfloat16 if the GPU has it, else float16. On a CPU it is the one of bfloat16 and float32 that
    takes less time a token, in plain or speculative decoding, whichever is faster.
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
        key=lambda dtype: seconds_a_token(seconds_by_rows(dtype, 1), seconds_by_rows(dtype, VERIFY_ROWS)),
    )


def seconds_a_token(one_row: float, verify_rows: float) -> float:
    """The lesser time a token, of plain decoding and of speculation, from the times of two products.

    >>> round(seconds_a_token(4.3, 6.7), 2), seconds_a_token(2.0, 7.5)  # float32 and emulated bfloat16
    (3.77, 2.0)
    """
    return min(one_row, (DRAFTING * one_row + verify_rows) / EMITTED)
