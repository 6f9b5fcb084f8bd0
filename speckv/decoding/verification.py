# SPDX-License-Identifier: Apache-2.0
"""Which drafted tokens stay, and which token the target adds. Pure functions, one rule each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from speckv.decoding.sampling import draw
from speckv.errors import ProbabilityError


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The outcome of one verify pass.

    Attributes:
        num_accepted: Drafted tokens kept, bonus excluded.
        tokens: The kept tokens, then one recovered or bonus token of the target's.
    """

    num_accepted: int
    tokens: tuple[int, ...]


def verify_match(draft_tokens: Sequence[int], target_tokens: Sequence[int]) -> Verification:
    """Keeps drafted tokens while they equal the target's own choices: greedy and Gumbel-coupled decoding.

    Args:
        draft_tokens: Oldest first.
        target_tokens: The target's choice at each of those positions and at the one after.

    Returns:
        The text is the target's own, whatever was drafted.

    >>> verify_match([5, 6, 7], [5, 6, 8, 9])
    Verification(num_accepted=2, tokens=(5, 6, 8))
    """
    kept = 0
    while kept < len(draft_tokens) and draft_tokens[kept] == target_tokens[kept]:
        kept += 1
    return Verification(num_accepted=kept, tokens=tuple(target_tokens[: kept + 1]))


def verify_rejection(
    draft_tokens: Sequence[int], draft_probs: Tensor, target_probs: Tensor, *, generator: torch.Generator
) -> Verification:
    """Keeps each drafted token with probability min(1, target / draft); emitted tokens follow the target exactly.

    Args:
        draft_tokens: Oldest first; token i was drawn from row i of `draft_probs`.
        draft_probs: Shape [draft, vocab]; rows sum to 1.
        target_probs: Shape [draft + 1, vocab]; the last row is for the bonus token.
        generator: The only source of randomness; on the tensors' device.

    Returns:
        Accepted tokens, then a token from the residual (after a rejection) or from the bonus row.

    Raises:
        ProbabilityError: if a drafted token has draft probability zero.

    Source:
        Leviathan et al. 2023, arXiv:2211.17192, Algorithm 1, where p is our target and q our draft.
    """
    kept: list[int] = []
    for i, token in enumerate(draft_tokens):
        draft_prob = float(draft_probs[i, token])
        if draft_prob <= 0:
            raise ProbabilityError(
                f"Drafted token {token} has draft probability 0; it cannot have been drawn from this row."
            )
        uniform = float(torch.rand((), generator=generator, device=target_probs.device))
        if uniform * draft_prob > float(target_probs[i, token]):
            recovered = draw(residual(target_probs[i], draft_probs[i]), generator)
            return Verification(num_accepted=i, tokens=(*kept, recovered))
        kept.append(token)
    bonus = draw(target_probs[len(draft_tokens)], generator)
    return Verification(num_accepted=len(kept), tokens=(*kept, bonus))


def residual(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """The distribution of the recovered token: max(target - draft, 0), normalised.

    Args:
        target_probs: Shape [vocab].
        draft_probs: Shape [vocab].

    Returns:
        Shape [vocab]; the target's own where rounding leaves nothing over.

    >>> residual(torch.tensor([0.75, 0.25]), torch.tensor([0.25, 0.75])).tolist()
    [1.0, 0.0]
    """
    left = (target_probs - draft_probs).clamp(min=0)
    total = left.sum()
    return left / total if float(total) > 0 else target_probs
