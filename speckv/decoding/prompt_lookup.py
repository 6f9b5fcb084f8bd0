# SPDX-License-Identifier: Apache-2.0
"""A draft without a model: what followed the newest tokens when they stood in the text before.

Prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding), which transformers knows as
`prompt_lookup_num_tokens` and vLLM as its n-gram proposer. Both copy what follows one earlier match; here each token is
the one that most often followed the longest match, so that counts can say how sure it is.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from speckv.decoding.draws import Draws
from speckv.decoding.protocols import Proposal
from speckv.errors import ConfigError

Key = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Guess:
    """What most likely comes next.

    Attributes:
        token: Its id.
        entropy: In nats, over what followed and over the escape, which stands for anything else.
        confidence: The token's share.
        margin: How far it is ahead of the second candidate's share, 0 where there is none.
    """

    token: int
    entropy: float
    confidence: float
    margin: float


class NgramIndex:
    """A text and, for each run of `shortest` to `longest` tokens in it, where which token followed.

    Attributes:
        tokens: The text.
        followers: Run of tokens -> token that followed -> its positions in the text, ascending.
    """

    def __init__(self, longest: int, shortest: int) -> None:
        self.tokens: list[int] = []
        self.followers: dict[Key, dict[int, list[int]]] = {}
        self._sizes = range(longest, shortest - 1, -1)

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends tokens."""
        for token in tokens:
            for key in self._keys():
                self.followers.setdefault(key, {}).setdefault(token, []).append(len(self.tokens))
            self.tokens.append(token)

    def truncate(self, length: int) -> None:
        """Forgets every token past `length`; the index is then that of the shorter text."""
        while len(self.tokens) > length:
            token = self.tokens.pop()
            for key in self._keys():
                followers = self.followers[key]
                followers[token].pop()
                if not followers[token]:
                    del followers[token]
                if not followers:
                    del self.followers[key]

    def guess(self) -> Guess | None:
        """The token that most often followed the longest run that the text ends with, the latest among equals.

        Of `T` occurrences of a run of `n` tokens, a token that followed `c` times gets the share c / (T + 1/n); what is
        left is the escape, smaller for a longer match.

        >>> index = NgramIndex(4, 2)
        >>> index.extend([1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 2])
        >>> guess = index.guess()  # [2, 3, 1, 2] was followed by 4, once
        >>> guess.token, guess.confidence  # 1 / (1 + 1/4)
        (4, 0.8)
        """
        for key in self._keys():
            followers = self.followers.get(key)
            if followers:
                return _guess(followers, 1 / len(key))
        return None

    def _keys(self) -> Iterator[Key]:
        """The runs that the text ends with, the longest first."""
        for size in self._sizes:
            if size <= len(self.tokens):
                yield tuple(self.tokens[-size:])


def _guess(followers: dict[int, list[int]], escape: float) -> Guess:
    token = max(followers, key=lambda t: (len(followers[t]), followers[t][-1]))
    counts = [len(positions) for positions in followers.values()]
    total = sum(counts) + escape
    top, *rest = sorted(counts, reverse=True)
    shares = [count / total for count in (*counts, escape)]
    return Guess(
        token=token,
        entropy=-sum(share * math.log(share) for share in shares),
        confidence=top / total,
        margin=(top - rest[0]) / total if rest else 0.0,
    )


class PromptLookup:
    """Makes drafters that look up the newest tokens in the text so far.

    Args:
        vocab_size: Tokens that the target scores.
        longest: Most tokens to match.
        shortest: Fewest tokens to match, at least 1.

    Raises:
        ConfigError: if they are out of range.
    """

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
        """Shown where a draft model's name would be."""
        return f"prompt-lookup({self.longest},{self.shortest})"

    def open(self, draws: Draws) -> "LookupDrafter":
        """Starts a request; a token that is looked up is drawn from nothing, so only the kind of sampling matters."""
        return LookupDrafter(self, with_probs=draws.sampling.mode == "rejection")


class LookupDrafter:
    """Drafts one request; it proposes nothing where no run of tokens stood in the text before.

    What it proposes depends on the text alone, its own proposals among it. A draft that has begun can always go on:
    what followed a match makes the next one.
    """

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
        """Reads tokens: a prompt, or what has become of the text."""
        self.index.extend(prompt)
        self._looked = False

    def truncate(self, length: int) -> None:
        """Forgets every token past `length`."""
        self.index.truncate(length)
        self._looked = False

    def guess(self) -> Guess | None:
        """What comes next after the tokens read; None where no run of them stood in the text before."""
        if not self._looked:
            self._guess, self._looked = self.index.guess(), True
        return self._guess

    def can_propose(self, unread: Sequence[int]) -> bool:
        """Reads `unread`, and says whether there is a guess."""
        if unread:
            self.read(unread)
        return self.guess() is not None

    def propose(self, unread: Sequence[int] | Tensor, position: int) -> Proposal:
        """Reads tokens, perhaps none, and proposes the one after them; see `Drafter`."""
        del position
        tokens = unread.tolist() if isinstance(unread, Tensor) else unread
        if tokens:
            self.read(tokens)
        guess = self.guess()
        assert guess is not None, "can_propose was not asked"
        token = torch.tensor([guess.token])
        signals = torch.tensor([[guess.entropy, guess.confidence, guess.margin]], dtype=torch.float32)
        probs = functional.one_hot(token, self._vocab_size).float() if self._with_probs else None
        return Proposal(token, signals, probs)
