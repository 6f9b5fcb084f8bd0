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
    top = logits.topk(2, dim=-1).values
    # Vocabularies are wide: few passes over them. Nothing 80 nats below the top matters, and 0 * -inf would be NaN.
    below = torch.sub(logits, top[:, :1]).clamp_(min=-80.0)
    weights = below.exp()
    total = weights.sum(-1)
    entropy = total.log() - torch.linalg.vecdot(weights, below) / total
    top_probs = (top - top[:, :1]).exp() / total[:, None]
    found = torch.stack([entropy.clamp(min=0.0), top_probs[:, 0], top_probs[:, 0] - top_probs[:, 1]], dim=-1)
    assert found.shape[-1] == NUM_SIGNALS
    return found
