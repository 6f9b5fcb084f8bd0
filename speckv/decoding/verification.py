# SPDX-License-Identifier: Apache-2.0
"""Which drafted tokens stay, and which token the target adds. Pure functions on the device, one rule each."""

from dataclasses import dataclass

import torch
from torch import Tensor

from speckv.decoding.sampling import draw
from speckv.errors import ProbabilityError


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one verify pass, on the device; nothing in it waits for the device.

    Attributes:
        num_accepted: No shape; drafted tokens kept, bonus excluded.
        tokens: Shape [draft + 1]; the kept tokens, then one recovered or bonus token of the target's; what comes
            after that means nothing.
    """

    num_accepted: Tensor
    tokens: Tensor


def verify_match(draft_tokens: Tensor, target_tokens: Tensor) -> Verdict:
    """Keeps drafted tokens while they equal the target's own choices: greedy and Gumbel-coupled decoding.

    Args:
        draft_tokens: Shape [draft], oldest first.
        target_tokens: Shape [draft + 1]; the target's choice at each of those positions and at the one after.

    Returns:
        The text is the target's own, whatever was drafted.

    >>> verify_match(torch.tensor([5, 6, 7]), torch.tensor([5, 6, 8, 9])).num_accepted
    tensor(2)
    """
    return Verdict((draft_tokens == target_tokens[:-1]).cumprod(0).sum(), target_tokens)


def verify_rejection(
    draft_tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, *, generator: torch.Generator
) -> Verdict:
    """Keeps each drafted token with probability min(1, target / draft); emitted tokens follow the target exactly.

    Args:
        draft_tokens: Shape [draft], oldest first; token i was drawn from row i of `draft_probs`.
        draft_probs: Shape [draft, vocab]; rows sum to 1.
        target_probs: Shape [draft + 1, vocab]; the last row is for the bonus token.
        generator: The only source of randomness; on the tensors' device.

    Returns:
        Accepted tokens, then a token from the residual (after a rejection) or from the bonus row.

    Raises:
        ProbabilityError: on a CPU, if a drafted token has draft probability zero.

    Source:
        Leviathan et al. 2023, arXiv:2211.17192, Algorithm 1, where p is our target and q our draft.
    """
    drafted = len(draft_tokens)
    chosen = draft_tokens[:, None]
    draft_prob, target_prob = (p[:drafted].gather(1, chosen)[:, 0] for p in (draft_probs, target_probs))
    if draft_prob.device.type == "cpu" and bool((draft_prob <= 0).any()):
        token = int(draft_tokens[int((draft_prob <= 0).nonzero()[0])])
        raise ProbabilityError(
            f"Drafted token {token} has draft probability 0; it cannot have been drawn from this row."
        )
    uniform = torch.rand(drafted, generator=generator, device=target_probs.device, dtype=target_probs.dtype)
    num_accepted = (uniform * draft_prob <= target_prob).cumprod(0).sum()
    # Behind a fully accepted draft stands the bonus token: nothing was drafted there, so nothing is taken off.
    taken_off = torch.cat([draft_probs, torch.zeros_like(target_probs[:1])])
    row = num_accepted[None]
    last = draw(residual(target_probs.index_select(0, row), taken_off.index_select(0, row)), generator)
    tokens = torch.cat([draft_tokens, last]).index_copy(0, row, last)
    return Verdict(num_accepted, tokens)


def residual(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """The distribution of the recovered token: max(target - draft, 0), normalised.

    Args:
        target_probs: Shape [..., vocab].
        draft_probs: The same shape.

    Returns:
        The same shape; the target's own where rounding leaves nothing over.

    >>> residual(torch.tensor([0.75, 0.25]), torch.tensor([0.25, 0.75])).tolist()
    [1.0, 0.0]
    """
    left = (target_probs - draft_probs).clamp(min=0)
    total = left.sum(-1, keepdim=True)
    return torch.where(total > 0, left / total, target_probs)
