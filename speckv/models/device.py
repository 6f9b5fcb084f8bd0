# SPDX-License-Identifier: Apache-2.0
"""Moving values to a device, and settings of devices."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from speckv.cores import usable_cores


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copies a host tensor; to CUDA through pinned memory, so that the host does not wait."""
    if device.type != "cuda" or values.device.type == "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def token_tensor(tokens: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Whole numbers as a tensor [tokens]; a tensor is returned unchanged."""
    if isinstance(tokens, Tensor):
        return tokens
    return to_device(torch.tensor(list(tokens), dtype=torch.long), device)


@contextmanager
def without_plans(device: torch.device) -> Iterator[None]:
    """Turns cuDNN's attention off on CUDA: it plans every new shape for tens to hundreds of milliseconds.

    Sources: modelscope/FunASR#3704, sgl-project/sglang#4650. In decoding every length is a new shape.
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
    """Sets PyTorch's threads; None means at most `usable_cores`, as PyTorch ignores CPU quotas."""
    torch.set_num_threads(threads or min(torch.get_num_threads(), usable_cores()))
