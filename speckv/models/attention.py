# SPDX-License-Identifier: Apache-2.0
"""Which kernels attention may run on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_plans(device: torch.device) -> Iterator[None]:
    """Leaves cuDNN's attention out while it lasts, on CUDA.

    Recent PyTorch tries it first on new GPUs. It makes a plan for every shape that it has not seen, tens to hundreds of
    milliseconds on the host (modelscope/FunASR#3704, sgl-project/sglang#4650), and while a text is decoded every length
    is a new shape.
    """
    before = device.type == "cuda" and torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    if not before:
        yield
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
