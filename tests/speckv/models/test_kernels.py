# SPDX-License-Identifier: Apache-2.0
"""What is said of the product that a compression runs on, for machines that this one is not."""

import logging
import platform
from collections.abc import Iterator, Mapping
from types import MappingProxyType, SimpleNamespace

import pytest
import torch

from speckv.models import kernels
from speckv.models.kernels import describe_kernel, warn_if_slow

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    kernels._warn_once.cache_clear()
    yield
    kernels._warn_once.cache_clear()


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    *,
    features: tuple[str, ...] = (),
    capability: str = "AVX2",
    modules: Mapping[str, SimpleNamespace] = MappingProxyType({}),
) -> None:
    """An x86 CPU with some features, and bitsandbytes' modules as given."""
    known = dict.fromkeys(("avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16"), False)
    monkeypatch.setattr(kernels, "_cpu_features", lambda: known | dict.fromkeys(features, True))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(kernels, "_module", lambda name: modules.get(name.removeprefix("bitsandbytes.")))


def fuses(hub_kernel: object) -> dict[str, SimpleNamespace]:
    """bitsandbytes on a CPU with AVX-512 BF16, with the hub's kernel or without."""
    return {
        "functional": SimpleNamespace(has_avx512bf16=lambda: True),
        "backends.cpu.ops": SimpleNamespace(gemm_4bit_forward_kernel=hub_kernel),
    }


def test_16_bit_arithmetic_is_emulated_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert describe_kernel("fp16", torch.float32, CPU) == "torch product in float32"
    emulated = describe_kernel("fp16", torch.bfloat16, CPU)
    assert emulated == "slow: torch product in bfloat16, emulated: this CPU has no avx512_bf16 or amx_bf16"
    pretend(monkeypatch, features=("amx_bf16",))
    assert describe_kernel("fp16", torch.bfloat16, CPU) == "torch product in bfloat16"
    assert describe_kernel("fp16", torch.float16, CPU).startswith("slow: torch product in float16, emulated")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert describe_kernel("fp16", torch.float16, CPU) == "torch product in float16"  # torch does not say


def test_int8_on_a_cpu_needs_avx_512(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert describe_kernel("int8", torch.bfloat16, CPU).startswith("slow: bitsandbytes INT8 without AVX-512 casts")
    pretend(monkeypatch, capability="AVX512")
    assert describe_kernel("int8", torch.bfloat16, CPU) == "bitsandbytes INT8: torch._int_mm, outlier columns apart"


def test_nf4_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert "dequantises every 4-bit weight to float32 at every pass" in describe_kernel("nf4", torch.float32, CPU)
    # bitsandbytes fuses, but could not fetch the kernel that does it well.
    pretend(monkeypatch, modules=fuses(hub_kernel=None))
    assert "slow: bitsandbytes' own fused 4-bit product" in describe_kernel("nf4", torch.bfloat16, CPU)
    pretend(monkeypatch, modules=fuses(hub_kernel=print))
    assert describe_kernel("nf4", torch.bfloat16, CPU).startswith("fused 4-bit product of the hub kernel")


def test_nf4_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, modules={"backends.cuda.ops": SimpleNamespace(_gemm_4bit_kernel_impl=print)})
    assert describe_kernel("nf4", torch.bfloat16, CUDA).startswith("bitsandbytes fused 4-bit product")
    pretend(monkeypatch, modules={"backends.cuda.ops": SimpleNamespace()})
    assert describe_kernel("nf4", torch.bfloat16, CUDA).startswith("slow: bitsandbytes multiplies 4-bit weights by one")


def test_the_rest_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert describe_kernel("fp16", torch.bfloat16, CUDA) == "torch product in bfloat16"
    assert "tensor-core" in describe_kernel("int8", torch.float16, CUDA)
    assert describe_kernel("awq", torch.float16, CUDA) == "awq, a registered compression: its kernel is not known"


def test_a_slow_path_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pretend(monkeypatch)
    with caplog.at_level(logging.WARNING, logger="speckv"):
        for _ in range(3):
            warn_if_slow("nf4", torch.float32, CPU)
            warn_if_slow("fp16", torch.float32, CPU)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("nf4 in float32 on cpu takes a slow path: bitsandbytes dequantises")
    assert "Use fp16 here" in message


def test_what_is_installed_here_is_looked_at() -> None:
    # Without pretending: bitsandbytes is a dependency, so its modules are there and decide.
    assert kernels._module("bitsandbytes.functional") is not None
    assert kernels._module("no.such.module") is None
    assert "4-bit" in describe_kernel("nf4", torch.float32, CPU)
