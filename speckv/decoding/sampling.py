# SPDX-License-Identifier: Apache-2.0
"""Sampling and verification as pure functions.

With Gumbel coupling, draft and target choose `argmax(log p + g[position])` with the same noise `g`: each choice is an
exact draw (Gumbel-max), the target's text does not depend on the draft, and the two often agree.
"""

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from speckv.errors import ConfigError, ProbabilityError, nearest
from speckv.types import FloatArray

MODES = ("greedy", "gumbel", "rejection")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How tokens are chosen.

    Attributes:
        mode: "greedy"; "gumbel" (the same text for every gamma); "rejection" (the same distribution for every gamma).
        top_k: 0 keeps all tokens.
        top_p: Keeps the smallest set of likeliest tokens with at least this mass; 1 keeps all.
    """

    mode: str = "greedy"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks ranges; raises ConfigError."""
        if self.mode not in MODES:
            raise ConfigError(f"Expected a sampling mode in {MODES}, got {self.mode!r}." + nearest(self.mode, [*MODES]))
        if not self.temperature > 0:
            raise ConfigError(f"Expected temperature above 0, got {self.temperature}. For greedy text use mode=greedy.")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(f"Expected top_k >= 0 and top_p in (0, 1], got {self.top_k} and {self.top_p}.")


def warp_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Temperature, top-k, top-p, in this order, on logits [..., vocab], in float32; excluded tokens become -inf.

    Source: Holtzman et al. 2020, arXiv:1904.09751 (top-p); the order is that of transformers' generate.
    """
    logits = logits.float()
    if config.mode == "greedy":
        return logits
    logits = logits / config.temperature
    if 0 < config.top_k < logits.shape[-1]:
        limit = logits.topk(config.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < limit, -torch.inf)
    if config.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        mass_before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        excluded = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, mass_before >= config.top_p)
        logits = logits.masked_fill(excluded, -torch.inf)
    return logits


def request_seed(seed: int, request: str) -> int:
    """Derives one request's seed from a run's, the same on every machine.

    >>> request_seed(0, "a") == request_seed(0, "a"), request_seed(0, "a") == request_seed(0, "b")
    (True, False)
    """
    return int.from_bytes(hashlib.sha256(f"{seed}:{request}".encode()).digest()[:7], "big")


@functools.lru_cache(maxsize=40)
def gumbel_noise(seed: int, position: int, vocab_size: int) -> Tensor:
    """Standard Gumbel noise [vocab_size] of an output position; drawn on the CPU for one text on all devices."""
    generator = torch.Generator().manual_seed(request_seed(seed, f"gumbel:{position}"))
    exponential = -torch.log(torch.rand(vocab_size, generator=generator).clamp_(min=1e-20))
    return -torch.log(exponential.clamp_(min=1e-20))


def choose(warped: Tensor, config: SamplingConfig, noise: Tensor | None) -> Tensor:
    """Tokens of greedy or Gumbel decoding, of logits and noise [rows, vocab]; ties go to the lowest id."""
    if config.mode == "greedy" or noise is None:
        return warped.argmax(-1)
    return (warped.log_softmax(-1) + noise.to(warped.device)).argmax(-1)


def draw(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Draws a token from each row of [rows, vocab] by a race of exponential clocks, without waiting for the device."""
    waits = torch.empty_like(probabilities).exponential_(generator=generator)
    return (probabilities / waits).argmax(-1)


def check_finite(values: Tensor | FloatArray, role: str) -> None:
    """Raises ProbabilityError if signals or logits hold NaN. Waits for the device of a tensor."""
    if bool(np.isnan(values).any() if isinstance(values, np.ndarray) else torch.isnan(values).any()):
        raise ProbabilityError(
            f"The {role} returned NaN. Its weights or this dtype are unusable here: "
            "try dtype=float32 or another compression."
        )


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome of one verify pass for one request, on the device; nothing in it waits for the device.

    `num_accepted`, a scalar, excludes the bonus; `tokens` [draft + 1] are the kept ones, one recovered or bonus token,
    then undefined ones.
    """

    num_accepted: Tensor
    tokens: Tensor


def verify_match(draft_tokens: Tensor, target_tokens: Tensor) -> Verification:
    """Keeps drafted tokens [draft] while they equal the target's choices [draft + 1]: greedy and Gumbel decoding.

    >>> verify_match(torch.tensor([5, 6, 7]), torch.tensor([5, 6, 8, 9])).num_accepted
    tensor(2)
    """
    return Verification((draft_tokens == target_tokens[:-1]).cumprod(0).sum(), target_tokens)


def verify_rejection(
    draft_tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, *, generator: torch.Generator
) -> Verification:
    """Keeps each drafted token with probability min(1, target / draft); emitted tokens follow the target exactly.

    Args:
        draft_tokens: Shape [draft], oldest first; token i was drawn from row i of `draft_probs`.
        draft_probs: Shape [draft, vocab]; rows sum to 1.
        target_probs: Shape [draft + 1, vocab]; the last row is for the bonus token.

    Raises:
        ProbabilityError: on a CPU, if a drafted token has draft probability zero.

    Source: Leviathan et al. 2023, arXiv:2211.17192, Algorithm 1, where p is our target and q our draft.
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
    # The bonus token follows a fully accepted draft: nothing was drafted there, so nothing is subtracted.
    subtracted = torch.cat([draft_probs, torch.zeros_like(target_probs[:1])])
    row = num_accepted[None]
    last = draw(residual(target_probs.index_select(0, row), subtracted.index_select(0, row)), generator)
    tokens = torch.cat([draft_tokens, last]).index_copy(0, row, last)
    return Verification(num_accepted, tokens)


def residual(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """The recovered token's distribution: max(target - draft, 0), normalised, or target if rounding leaves nothing.

    >>> residual(torch.tensor([0.75, 0.25]), torch.tensor([0.25, 0.75])).tolist()
    [1.0, 0.0]
    """
    left = (target_probs - draft_probs).clamp(min=0)
    total = left.sum(-1, keepdim=True)
    return torch.where(total > 0, left / total, target_probs)
