# SPDX-License-Identifier: Apache-2.0
"""A language model that drafts."""

from collections.abc import Sequence

from torch import Tensor

from speckv.decoding.draws import Draws
from speckv.decoding.protocols import LanguageModel, Proposal


class ModelDraft:
    """Makes drafters of a language model.

    Attributes:
        model: The draft model.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    @property
    def context_limit(self) -> int:
        """Longest sequence it takes, in tokens."""
        return self.model.context_limit

    def open(self, draws: Draws) -> "ModelDrafter":
        """Starts a request."""
        return ModelDrafter(self.model, draws)


class ModelDrafter:
    """Drafts one request; its cache holds the text as far as it has read it, and its own proposals."""

    def __init__(self, model: LanguageModel, draws: Draws) -> None:
        self._cache, self._draws = model.sequence(), draws

    @property
    def length(self) -> int:
        """Tokens read."""
        return self._cache.length

    def read(self, prompt: Sequence[int]) -> None:
        """Reads a prompt."""
        self._cache.score(prompt, num_logits=1)

    def truncate(self, length: int) -> None:
        """Forgets every token past `length`."""
        self._cache.truncate(length)

    def can_propose(self, unread: Sequence[int]) -> bool:
        """A model always has something to say."""
        del unread
        return True

    def propose(self, unread: Sequence[int] | Tensor, position: int) -> Proposal:
        """Reads tokens and proposes the one after them; see `Drafter`."""
        return self._draws.propose(self._cache.score(unread, num_logits=1), position)
