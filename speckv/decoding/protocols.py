# SPDX-License-Identifier: Apache-2.0
"""The seams of the decode loop: what a model, a drafter and a clock must offer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from speckv.models.signals import Scores

if TYPE_CHECKING:
    from speckv.decoding.draws import Draws


class CachedTokens(Protocol):
    """One token sequence inside one model; `speckv.models.CachedSequence` is the real one."""

    @property
    def length(self) -> int:
        """Tokens in the cache."""

    def score(self, tokens: Sequence[int] | Tensor, *, num_logits: int | None = None) -> Scores:
        """Appends tokens, ids or a tensor of shape [tokens] on the device, and scores what follows the last of them."""

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


@dataclass(frozen=True, slots=True)
class Proposal:
    """One drafted token, on the target's device, or on the host where its source works there.

    Attributes:
        token: Shape [1].
        signals: Shape [1, 3]; float32.
        probs: Shape [1, vocab]; the distribution that the token was drawn from, for rejection sampling alone.
    """

    token: Tensor
    signals: Tensor
    probs: Tensor | None = None


class Drafter(Protocol):
    """What drafts for one request: it reads the text and proposes token after token."""

    @property
    def length(self) -> int:
        """Tokens read, its own proposals among them."""

    def read(self, prompt: Sequence[int]) -> None:
        """Reads a prompt."""

    def truncate(self, length: int) -> None:
        """Forgets every token past `length`."""

    def can_propose(self, unread: Sequence[int]) -> bool:
        """Whether it has anything to propose after `unread`; called before the first proposal and between them.

        It may read `unread` to find out: `length` then says so, and `propose` is given the rest, which may be nothing.
        """

    def propose(self, unread: Sequence[int] | Tensor, position: int) -> Proposal:
        """Reads tokens and proposes the one after them.

        Args:
            unread: Ids, or its own last proposal; at least one but where `can_propose` has read them.
            position: Output position of the proposal.
        """


@runtime_checkable
class DraftSource(Protocol):
    """Makes drafters: `ModelDraft` around a language model, `PromptLookup` without any.

    One that works on the host says so with `on_host = True`: its proposals are host tensors, and the host sees each at
    once.
    """

    @property
    def context_limit(self) -> int:
        """Longest sequence it takes, in tokens."""

    def open(self, draws: "Draws") -> Drafter:
        """Starts a request that draws its tokens with `draws`."""


class Clock(Protocol):
    """Reads instants, whose difference is in seconds: floats of the host, or events of a device (`decoding.clock`)."""

    def __call__(self) -> Any:
        """An instant; `later - earlier` is a float, in seconds, with the device's work in between done."""
