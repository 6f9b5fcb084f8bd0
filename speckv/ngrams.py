# SPDX-License-Identifier: Apache-2.0
"""Predicts the next token of a text from earlier runs of the same tokens, without any array library."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Key = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Guess:
    """The most likely next token.

    Attributes:
        entropy: In nats, over what followed and over the escape, which stands for anything else.
        confidence: The token's share.
        margin: Its lead over the second candidate's share, 0 where there is none.
    """

    token: int
    entropy: float
    confidence: float
    margin: float


class NgramIndex:
    """A text and its runs of `shortest` to `longest` tokens: run -> token that followed -> positions, ascending."""

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
        """Removes every token past `length`; the index is then that of the shorter text."""
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
