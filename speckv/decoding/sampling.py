# SPDX-License-Identifier: Apache-2.0
"""Distributions and draws: temperature, top-k, top-p, Gumbel noise shared by position. Pure functions.

With Gumbel coupling, draft and target choose `argmax(log p + g[position])` with the same noise `g`. Each choice is an
exact draw from its own distribution (Gumbel-max), the target's text is the same whatever was drafted, and the two agree
often.
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
        temperature: Above 0; ignored by greedy.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the smallest set of likeliest tokens with at least this mass; 1 keeps all.
        seed: Of every draw of a request.

    Raises:
        ConfigError: for values out of range.
    """

    mode: str = "greedy"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.mode not in MODES:
            raise ConfigError(f"Expected a sampling mode in {MODES}, got {self.mode!r}." + nearest(self.mode, [*MODES]))
        if not self.temperature > 0:
            raise ConfigError(f"Expected temperature above 0, got {self.temperature}. For greedy text use mode=greedy.")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(f"Expected top_k >= 0 and top_p in (0, 1], got {self.top_k} and {self.top_p}.")


def warp_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Applies temperature, then top-k, then top-p; excluded tokens become -inf.

    Args:
        logits: Shape [..., vocab].
        config: At greedy, logits come back unchanged.

    Returns:
        Float32 logits of the same shape.

    Source:
        Holtzman et al. 2020, arXiv:1904.09751 (top-p); the order is that of transformers' generate.
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
    """Standard Gumbel noise for one output position: a function of its arguments alone.

    Args:
        seed: Of the request.
        position: Output position, from 0.
        vocab_size: Number of values.

    Returns:
        Float32 of shape [vocab_size], on the CPU so that every device draws the same text.
    """
    generator = torch.Generator().manual_seed(request_seed(seed, f"gumbel:{position}"))
    exponential = -torch.log(torch.rand(vocab_size, generator=generator).clamp_(min=1e-20))
    return -torch.log(exponential.clamp_(min=1e-20))


def choose(warped: Tensor, config: SamplingConfig, noise: Tensor | None) -> Tensor:
    """The token that greedy or Gumbel decoding takes.

    Args:
        warped: Shape [rows, vocab], from `warp_logits`.
        config: "greedy" or "gumbel".
        noise: Shape [rows, vocab] for "gumbel".

    Returns:
        Token ids of shape [rows]; ties go to the lowest id.
    """
    if config.mode == "greedy" or noise is None:
        return warped.argmax(-1)
    return (warped.log_softmax(-1) + noise.to(warped.device)).argmax(-1)


def draw(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Draws one token a row, without waiting for the device.

    Args:
        probabilities: Shape [rows, vocab].
        generator: On their device.

    Returns:
        Token ids of shape [rows]; token x wins the race of exponential clocks with probability proportional to its
        own, and one of probability zero never does.
    """
    waits = torch.empty_like(probabilities).exponential_(generator=generator)
    return (probabilities / waits).argmax(-1)


def check_finite(values: Tensor | FloatArray, who: str) -> None:
    """Raises ProbabilityError if a model's scores are not numbers.

    Args:
        values: Signals or logits, any shape; -inf is no error in logits. Those of a device are waited for.
        who: The model's role, for the message.
    """
    if bool(np.isnan(values).any() if isinstance(values, np.ndarray) else torch.isnan(values).any()):
        raise ProbabilityError(
            f"The {who} returned NaN. Its weights or this dtype are unusable here: "
            "try dtype=float32 or another compression."
        )
