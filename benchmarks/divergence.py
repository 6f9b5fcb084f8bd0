# SPDX-License-Identifier: Apache-2.0
"""Where two texts part that should be one, and how close the target's two best tokens were there."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from speckv.decoding import SamplingConfig
from speckv.decoding.protocols import LanguageModel
from speckv.decoding.sampling import gumbel_noise, request_seed, warp_logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first difference of a text from plain decoding's.

    Attributes:
        position: Output position, from 0.
        plain: Plain decoding's token there; None behind its end.
        other: The other text's token there; None behind its end.
        gap: The target's best score minus its second best there, in nats, after the text that both share; with Gumbel
            sampling, scores include the noise.
        gap_roundings: The gap in units of rounding: what the last bit of the best logit is worth in the dtype that the
            model computes in. A few of them are what another kernel's order of sums may flip.
    """

    position: int
    plain: int | None
    other: int | None
    gap: float
    gap_roundings: float

    def to_dict(self) -> dict[str, int | float | None]:
        """Renders it for a report."""
        return asdict(self)


def first_difference(tokens: Sequence[int], plain: Sequence[int]) -> int | None:
    """Position of the first token that differs, or None.

    >>> first_difference([1, 2], [1, 3]), first_difference([1], [1, 2]), first_difference([1], [1])
    (1, 1, None)
    """
    pairs = enumerate(zip(tokens, plain, strict=False))
    found = next((i for i, (a, b) in pairs if a != b), None)
    return found if found is not None or len(tokens) == len(plain) else min(len(tokens), len(plain))


def explain(
    target: LanguageModel,
    prompt: Sequence[int],
    plain: Sequence[int],
    other: Sequence[int],
    *,
    sampling: SamplingConfig | None = None,
    request: str = "",
) -> Divergence | None:
    """Finds the first difference and the target's certainty there.

    The target reads the text as plain decoding does, token by token.

    Args:
        target: The model.
        prompt: Token ids.
        plain: Plain decoding's text.
        other: The text that should equal it.
        sampling: How both were decoded, greedily by default.
        request: Its name, which with the sampling's seed fixes Gumbel noise.

    Returns:
        None where the texts are the same.
    """
    position = first_difference(other, plain)
    if position is None:
        return None
    sequence = target.sequence()
    logits = sequence.score(list(prompt), num_logits=1).logits
    for token in plain[:position]:
        logits = sequence.score([token], num_logits=1).logits
    sampling = sampling or SamplingConfig()
    scores = warp_logits(logits, sampling)[0]
    if sampling.mode == "gumbel":
        noise = gumbel_noise(request_seed(sampling.seed, request), position, scores.shape[-1])
        scores = scores.log_softmax(-1) + noise.to(scores.device)
    best, second = scores.topk(2).values.tolist()
    rounding = max(torch.finfo(logits.dtype).eps, torch.finfo(torch.float32).eps) * float(logits.abs().max())
    return Divergence(
        position=position,
        plain=plain[position] if position < len(plain) else None,
        other=other[position] if position < len(other) else None,
        gap=best - second,
        gap_roundings=(best - second) / max(rounding, 1e-30),
    )
