# SPDX-License-Identifier: Apache-2.0
"""What a distribution says about its own next token: entropy, confidence, margin."""

import torch
from torch import Tensor

from speckv.types import NUM_SIGNALS


def signals(logits: Tensor) -> Tensor:
    """Entropy (nats), top-1 probability and top-1 minus top-2 probability, at temperature 1.

    Unwarped logits go in at every temperature: a greedy draft is judged by what it believes, not by its argmax.

    Args:
        logits: Shape [rows, vocab].

    Returns:
        Float32 of shape [rows, 3]; NaN logits give NaN.

    >>> signals(torch.zeros(1, 4)).round(decimals=4).tolist()
    [[1.3863, 0.25, 0.0]]
    """
    logits = logits.float()
    log_normaliser = logits.logsumexp(-1, keepdim=True)
    log_probs = logits - log_normaliser
    entropy = -(log_probs.exp() * log_probs.clamp(min=-1e4)).sum(-1)
    top = log_probs.topk(2, dim=-1).values.exp()
    result = torch.stack([entropy.clamp(min=0.0), top[..., 0], top[..., 0] - top[..., 1]], dim=-1)
    assert result.shape[-1] == NUM_SIGNALS
    return result
