# SPDX-License-Identifier: Apache-2.0
"""The text that each token adds, where a character may lie across tokens."""

import codecs
from collections.abc import Mapping, Sequence


class TokenTexts:
    """Turns tokens of one vocabulary into text, token by token.

    Args:
        pieces: Token id -> bytes; ids without any are shown as numbers.
    """

    def __init__(self, pieces: Mapping[int, bytes]) -> None:
        self._pieces = pieces
        self.missing: set[int] = set()

    def emitted(self, tokens: Sequence[int]) -> list[str]:
        r"""The text of each token; a character that lies across several appears with its last, nothing with the others.

        >>> TokenTexts({1: b"a", 2: b"\xc3", 3: b"\xa9!"}).emitted([1, 2, 3, 4])
        ['a', '', 'é!', '⟨4⟩']
        """
        return self.after([], tokens)

    def after(self, before: Sequence[int], tokens: Sequence[int]) -> list[str]:
        """The same for tokens that follow others, whose last character they may complete."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in before:
            decoder.decode(self._bytes(token))
        texts = [decoder.decode(self._bytes(token)) for token in tokens]
        if texts:
            texts[-1] += decoder.decode(b"", final=True)
        return texts

    def _bytes(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            self.missing.add(token)
            return f"\u27e8{token}\u27e9".encode()
        return piece
