# SPDX-License-Identifier: Apache-2.0
"""Signals of a next-token distribution."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from speckv.types import NUM_SIGNALS


@dataclass(frozen=True, slots=True)
class Scores:
    """Logits of a pass and their summary; nothing in it waits for the device.

    Shapes: `logits` [rows, vocab]; `signals` [rows, 3], float32, NaN where the logits are; `best` [rows], the likeliest
    token, the lowest id among equals.
    """

    logits: Tensor
    signals: Tensor
    best: Tensor

    @staticmethod
    def of(logits: Tensor) -> "Scores":
        """Summarises logits [rows, vocab]."""
        return Scores(logits, signals(logits), logits.argmax(-1))


class ScoredTokens:
    """Adds `score` to a cached sequence that has `extend`."""

    def extend(self, tokens: Sequence[int] | Tensor, *, num_logits: int | None = None) -> Tensor:
        """See `speckv.decoding.protocols.CachedTokens`."""
        raise NotImplementedError

    def score(self, tokens: Sequence[int] | Tensor, *, num_logits: int | None = None) -> Scores:
        """Appends tokens as `extend` does, and scores what follows the last of them."""
        return Scores.of(self.extend(tokens, num_logits=num_logits))


def signals(logits: Tensor) -> Tensor:
    """Entropy (nats), confidence, top-1 minus top-2 probability: float32 [rows, 3], of unwarped logits [rows, vocab].

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
