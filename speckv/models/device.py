# SPDX-License-Identifier: Apache-2.0
"""Moving values to a device, and settings of the device that passes run on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from speckv.cores import usable_cores


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copies a host tensor to a device; on CUDA through pinned memory, so that the host does not wait."""
    if device.type != "cuda" or values.device.type == "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def token_tensor(tokens: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Whole numbers as a tensor of shape [tokens] on a device; a tensor is returned unchanged."""
    if isinstance(tokens, Tensor):
        return tokens
    return to_device(torch.tensor(list(tokens), dtype=torch.long), device)


@contextmanager
def without_plans(device: torch.device) -> Iterator[None]:
    """Turns cuDNN's attention off in a block, on CUDA.

    Recent PyTorch prefers it on new GPUs. It plans for every new shape, tens to hundreds of milliseconds on the host
    (modelscope/FunASR#3704, sgl-project/sglang#4650), and in decoding every length is a new shape.
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


def use_threads(threads: int | None) -> None:
    """Sets PyTorch's threads; None limits PyTorch's default to `usable_cores`, because it ignores CPU quotas."""
    torch.set_num_threads(threads or min(torch.get_num_threads(), usable_cores()))
