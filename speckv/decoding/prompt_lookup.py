# SPDX-License-Identifier: Apache-2.0
"""A draft without a model: the token that most often followed the longest earlier match of the newest tokens.

Source: prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding), which copies what followed
one match. Here the counts of what followed all matches give each token's confidence.
"""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from speckv.decoding.protocols import Proposal
from speckv.decoding.request import Draws
from speckv.errors import ConfigError
from speckv.models import CausalModel, ModelPair
from speckv.ngrams import Guess, NgramIndex


class PromptLookup:
    """Opens drafters that match the newest `longest` to `shortest` tokens with the text so far."""

    on_host = True
    context_limit = sys.maxsize

    def __init__(self, vocab_size: int, longest: int = 4, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise ConfigError(
                f"Expected 1 <= lookup_shortest <= lookup_longest, got {shortest} and {longest}. Usual are 2 and 4."
            )
        self.vocab_size, self.longest, self.shortest = vocab_size, longest, shortest

    @property
    def name(self) -> str:
        """Name in reports."""
        return f"prompt-lookup({self.longest},{self.shortest})"

    def open(self, draws: Draws) -> "LookupDrafter":
        """Starts a request; proposals are not drawn, so only the sampling mode matters."""
        return LookupDrafter(self, with_probs=draws.sampling.mode == "rejection")


class LookupDrafter:
    """Drafts one request from its own text; a draft that has begun can always continue."""

    def __init__(self, lookup: PromptLookup, *, with_probs: bool = False) -> None:
        self._vocab_size, self._with_probs = lookup.vocab_size, with_probs
        self.index = NgramIndex(lookup.longest, lookup.shortest)
        self._guess: Guess | None = None
        self._looked = False

    @property
    def length(self) -> int:
        """Tokens read."""
        return len(self.index.tokens)

    def read(self, prompt: Sequence[int]) -> None:
        """Reads tokens of a prompt or of the text after it."""
        self.index.extend(prompt)
        self._looked = False

    def truncate(self, length: int) -> None:
        """Removes every token past `length`."""
        self.index.truncate(length)
        self._looked = False

    def guess(self) -> Guess | None:
        """The next token; None where there is no match."""
        if not self._looked:
            self._guess, self._looked = self.index.guess(), True
        return self._guess

    def can_propose(self, unread: Sequence[int]) -> bool:
        """Reads `unread`; whether there is a guess."""
        if unread:
            self.read(unread)
        return self.guess() is not None

    def propose(self, unread: Sequence[int] | Tensor, position: int) -> Proposal:
        """See `Drafter`."""
        del position
        tokens = unread.tolist() if isinstance(unread, Tensor) else unread
        if tokens:
            self.read(tokens)
        guess = self.guess()
        assert guess is not None, "call can_propose first"
        token = torch.tensor([guess.token])
        signals = torch.tensor([[guess.entropy, guess.confidence, guess.margin]], dtype=torch.float32)
        probs = functional.one_hot(token, self._vocab_size).float() if self._with_probs else None
        return Proposal(token, signals, probs)


def draft_source(pair: ModelPair) -> CausalModel | PromptLookup:
    """The pair's draft model, or a lookup if it has none."""
    if pair.draft_model is not None:
        return pair.draft_model
    config = pair.config
    return PromptLookup(pair.target.vocab_size, config.lookup_longest, config.lookup_shortest)
