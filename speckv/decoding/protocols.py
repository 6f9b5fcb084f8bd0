# SPDX-License-Identifier: Apache-2.0
"""The interfaces of the decode loop: what a model, a source of drafts and a clock must offer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from speckv.models.signals import Scores

if TYPE_CHECKING:
    from speckv.decoding.request import Draws


class CachedTokens(Protocol):
    """One token sequence inside one model, such as `speckv.models.CachedSequence`."""

    @property
    def length(self) -> int:
        """Tokens in the cache."""

    def score(self, tokens: Sequence[int] | Tensor, *, num_logits: int | None = None) -> Scores:
        """Appends tokens, ids or a tensor of shape [tokens] on the device, and scores what follows the last of them."""

    def truncate(self, length: int) -> None:
        """Removes every token past `length`."""


class ScoringModel(Protocol):
    """What the engines read of a model."""

    @property
    def context_limit(self) -> int:
        """Longest sequence it takes, in tokens."""

    @property
    def vocab_size(self) -> int:
        """Tokens it scores."""


class LanguageModel(ScoringModel, Protocol):
    """A model that `Engine` can drive."""

    def sequence(self) -> CachedTokens:
        """Starts an empty sequence."""


class CachedRows(Protocol):
    """Token sequences inside one model, each of its own length, such as `speckv.models.ragged.RaggedRows`."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row."""

    def add(self, count: int) -> None:
        """Adds empty rows behind the others."""

    def remove(self, row: int) -> None:
        """Removes a row; the last one takes its place."""

    def truncate(self, row: int, length: int) -> None:
        """Removes every token of a row past `length`."""

    def extend(self, rows: Sequence[int], tokens: Tensor, counts: Sequence[int], *, last_only: bool = False) -> Tensor:
        """Appends the first `counts[i]` of `tokens[i]` to row `rows[i]`, in one pass.

        Returns logits after each of them, row after row without padding, or only after each row's last one.
        """


class BatchModel(ScoringModel, Protocol):
    """A model that `BatchEngine` can drive, such as `speckv.models.RaggedModel`."""

    @property
    def device(self) -> torch.device:
        """Where it takes tokens and gives logits."""

    def rows(self) -> CachedRows:
        """Starts with no rows."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One drafted token, on the target's device, or on the host if its source works there.

    Attributes:
        token: Shape [1].
        signals: Shape [1, 3]; float32.
        probs: Shape [1, vocab]; the distribution that the token was drawn from, for rejection sampling alone.
    """

    token: Tensor
    signals: Tensor
    probs: Tensor | None = None


class Drafter(Protocol):
    """Drafts for one request without a language model: it reads the text and proposes token after token."""

    @property
    def length(self) -> int:
        """Tokens read, its own proposals included."""

    def read(self, prompt: Sequence[int]) -> None:
        """Reads a prompt."""

    def truncate(self, length: int) -> None:
        """Removes every token past `length`."""

    def can_propose(self, unread: Sequence[int]) -> bool:
        """Whether it can propose a token after `unread`; called before the first proposal and between them.

        It may read `unread` to find out: `length` then includes it, and `propose` is given the rest, perhaps nothing.
        """

    def propose(self, unread: Sequence[int] | Tensor, position: int) -> Proposal:
        """Reads `unread`, ids or its own last proposal, and proposes the token after them, for an output position."""


@runtime_checkable
class DraftSource(Protocol):
    """Opens a `Drafter` for each request, as `PromptLookup` does.

    One that works on the host has `on_host = True`: its proposals are host tensors, and the host reads each at once.
    """

    @property
    def context_limit(self) -> int:
        """Longest sequence it takes, in tokens."""

    def open(self, draws: "Draws") -> Drafter:
        """Starts a request."""


class Clock(Protocol):
    """Reads instants: floats of the host, or events of a device (`decoding.clock`)."""

    def __call__(self) -> Any:
        """An instant; `later - earlier` is the seconds between them as a float, the device's work included."""
