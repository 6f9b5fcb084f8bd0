# SPDX-License-Identifier: Apache-2.0
"""The seams of the decode loop: what a model and a clock must offer."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class CachedTokens(Protocol):
    """One token sequence inside one model; `speckv.models.CachedSequence` is the real one."""

    @property
    def length(self) -> int:
        """Tokens in the cache."""

    def extend(self, tokens: Sequence[int], *, num_logits: int | None = None) -> Tensor:
        """Appends tokens and returns logits of shape [num_logits, vocab] after the last of them."""

    def truncate(self, length: int) -> None:
        """Forgets every token past `length`."""


class LanguageModel(Protocol):
    """A model that the engine can drive."""

    @property
    def context_limit(self) -> int:
        """Longest sequence it takes, in tokens."""

    @property
    def vocab_size(self) -> int:
        """Tokens it scores."""

    def sequence(self) -> CachedTokens:
        """Starts an empty sequence."""


class Clock(Protocol):
    """Reads instants, whose difference is in seconds: floats of the host, or events of a device (`decoding.clock`)."""

    def __call__(self) -> Any:
        """An instant; `later - earlier` is a float, in seconds, with the device's work in between done."""
