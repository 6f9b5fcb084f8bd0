# SPDX-License-Identifier: Apache-2.0
"""The interfaces of the decode loop: models, sources of drafts, clocks."""

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
        """Appends token ids, on the host or of shape [tokens] on the device, and scores what follows the last."""

    def truncate(self, length: int) -> None:
        """Removes every token past `length`."""


class ScoringModel(Protocol):
    """The part of a model that both engines read."""

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
        """Appends `tokens[i, :counts[i]]` to row `rows[i]`; logits of all tokens or each row's last, unpadded."""


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

    `token` has shape [1], `signals` [1, 3] in float32; `probs` [1, vocab] is the distribution that the token was drawn
    from, for rejection sampling alone.
    """

    token: Tensor
    signals: Tensor
    probs: Tensor | None = None


class Drafter(Protocol):
    """Drafts for one request without a language model, token after token."""

    @property
    def length(self) -> int:
        """Tokens read, its own proposals included."""

    def read(self, prompt: Sequence[int]) -> None:
        """Reads a prompt."""

    def truncate(self, length: int) -> None:
        """Removes every token past `length`."""

    def can_propose(self, unread: Sequence[int]) -> bool:
        """Whether it can propose after `unread`; if it reads that, `propose` is given the rest, perhaps nothing."""

    def propose(self, unread: Sequence[int] | Tensor, position: int) -> Proposal:
        """Reads `unread`, ids or its own last proposal, and proposes the token for an output position."""


@runtime_checkable
class DraftSource(Protocol):
    """Opens a `Drafter` for each request; if `on_host`, proposals are host tensors, each read at once."""

    @property
    def context_limit(self) -> int:
        """Longest sequence it takes, in tokens."""

    def open(self, draws: "Draws") -> Drafter:
        """Starts a request."""


class Clock(Protocol):
    """Reads instants: floats of the host, or events of a device."""

    def __call__(self) -> Any:
        """An instant; `later - earlier` is in seconds, the device's work included."""
