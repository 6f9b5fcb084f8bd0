# SPDX-License-Identifier: Apache-2.0
"""Descriptions of the matrix product of a compressed model's layers, and warnings of slow ones.

Source: bitsandbytes 0.50, `backends/cpu/ops.py`, `backends/cuda/ops.py`, `backends/default/ops.py`, `nn/modules.py`.
"""

import functools
import importlib
import logging
import platform
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from speckv.models.dtypes import dtype_name

logger = logging.getLogger(__name__)
_NATIVE = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16"),
}
"""Features of an x86 CPU, by torch's names; one is enough to multiply in that dtype natively."""


class Kernel(NamedTuple):
    """A product in one line, and a faster alternative if it is slow."""

    text: str
    remedy: str = ""


_INT8_ON_CUDA = Kernel("bitsandbytes INT8 tensor-core product, outlier columns apart in float16")


def describe_kernel(compression: str, dtype: torch.dtype, device: torch.device) -> str:
    """The product in one line; a slow path begins with "slow: "."""
    kernel = find_kernel(compression, dtype, device)
    return f"slow: {kernel.text}" if kernel.remedy else kernel.text


def warn_if_slow(compression: str, dtype: torch.dtype, device: torch.device) -> None:
    """Logs a warning, once a process for each case."""
    _warn_once(compression, dtype, device.type)


@functools.cache
def _warn_once(compression: str, dtype: torch.dtype, device_type: str) -> None:
    kernel = find_kernel(compression, dtype, torch.device(device_type))
    if kernel.remedy:
        logger.warning(
            "%s in %s on %s takes a slow path: %s. %s",
            compression,
            dtype_name(dtype),
            device_type,
            kernel.text,
            kernel.remedy,
        )


def find_kernel(compression: str, dtype: torch.dtype, device: torch.device) -> Kernel:
    """The product; of a registered further compression only the name is known."""
    on_cpu = device.type == "cpu"
    if compression == "fp16":
        return _plain(dtype, emulated=on_cpu and emulated_on_cpu(dtype))
    if compression == "int8":
        return _int8_on_cpu() if on_cpu else _INT8_ON_CUDA
    if compression == "nf4":
        return _nf4_on_cpu(dtype) if on_cpu else _nf4_on_cuda()
    return Kernel(f"{compression}, a registered compression: its kernel is not known")


def _plain(dtype: torch.dtype, *, emulated: bool) -> Kernel:
    text = f"torch product in {dtype_name(dtype)}"
    if not emulated:
        return Kernel(text)
    return Kernel(
        f"{text}, emulated: this CPU has no {' or '.join(_NATIVE[dtype])}",
        "One row is quick, a verify pass is not: compare with dtype=float32 where speculation is to pay.",
    )


def _int8_on_cpu() -> Kernel:
    # Activations are rounded to INT8 from float16, whatever the dtype.
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return Kernel("bitsandbytes INT8: torch._int_mm, outlier columns apart")
    return Kernel(
        "bitsandbytes INT8 without AVX-512 casts every weight to float32 at every pass",
        "Use fp16 here, or a CPU with AVX-512.",
    )


def _nf4_on_cpu(dtype: torch.dtype) -> Kernel:
    # bitsandbytes repacks 4-bit weights for its fused product by the CPU alone, whatever the dtype.
    fuses = getattr(_module("bitsandbytes.functional"), "has_avx512bf16", None)
    if fuses is None or not fuses():
        text = f"bitsandbytes dequantises every 4-bit weight to {dtype_name(dtype)} at every pass"
        return Kernel(text, "Use fp16 here, or a CPU with AVX-512 BF16.")
    if getattr(_module("bitsandbytes.backends.cpu.ops"), "gemm_4bit_forward_kernel", None) is not None:
        return Kernel("fused 4-bit product of the hub kernel quantization-bitsandbytes, bfloat16")
    return Kernel(
        "bitsandbytes' own fused 4-bit product (AVX-512 BF16), which serves one row well and more rows in proportion",
        "`pip install kernels` lets bitsandbytes fetch its faster kernel (needs the network once).",
    )


def _nf4_on_cuda() -> Kernel:
    if hasattr(_module("bitsandbytes.backends.cuda.ops"), "_gemm_4bit_kernel_impl"):
        return Kernel("bitsandbytes fused 4-bit product; dequantises the weights where many rows make that faster")
    return Kernel(
        "bitsandbytes multiplies 4-bit weights by one row, and dequantises them at every pass of more rows",
        "Upgrade bitsandbytes to 0.50 or later.",
    )


def emulated_on_cpu(dtype: torch.dtype) -> bool:
    """Whether an x86 CPU lacks instructions for a 16-bit dtype; False where torch has no such list."""
    features = _cpu_features()
    if dtype not in _NATIVE or not features or platform.machine() not in ("x86_64", "AMD64"):
        return False
    return not any(features.get(name) for name in _NATIVE[dtype])


def _cpu_features() -> Mapping[str, Any]:
    read = getattr(torch.cpu, "get_capabilities", None)
    return dict(read()) if read is not None else {}


def _module(name: str) -> object:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError):
        return None
