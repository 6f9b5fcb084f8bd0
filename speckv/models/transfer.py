# SPDX-License-Identifier: Apache-2.0
"""From the host to a device without waiting for it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copies a host tensor to a device; on CUDA through pinned memory, so that the host goes on at once."""
    if device.type != "cuda" or values.device.type == "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def token_tensor(tokens: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Token ids, or other whole numbers, as a tensor of shape [tokens] on a device, whatever they come as."""
    if isinstance(tokens, Tensor):
        return tokens
    return to_device(torch.tensor(list(tokens), dtype=torch.long), device)
