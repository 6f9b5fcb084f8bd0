# SPDX-License-Identifier: Apache-2.0
"""Incremental detokenisation: pieces of text that together equal the text of all tokens."""

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
_MOST_PENDING = 3
"""Most bytes, and so replacement characters, of an incomplete UTF-8 character."""
_LONGEST_WINDOW = 64
_KEPT_WINDOW = 16
_FIRST_IDS = 512
"""Vocabularies with single bytes have them among these first ids."""
_NO_SUCH_TOKEN = (IndexError, KeyError, OverflowError, TypeError, ValueError)


class Detokenizer:
    """Turns tokens into text one by one, at a cost per token that does not grow with the text.

    Text is returned once later tokens cannot change it; a character split over tokens comes with its last token.
    Tokenizers that fall back on single bytes decode a run of them as a whole, where one invalid byte makes all of them
    replacement characters; such a run is returned after its end.

    Only the newest tokens are decoded, after some whose text has been returned, because tokenizers with a prefix space
    drop the first space of a text.

    `decode` returns the text of tokens, with invalid UTF-8 as replacement characters.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._shown = ""
        """The part of the window's text that has been returned."""
        self._newest = 0
        """Tokens of the window before the newest piece of text."""
        self._fragments: dict[int, bool] = {}
        self._fragment = next((token for token in range(_FIRST_IDS) if self._is_fragment(token)), None)
        self._runs_change = any(self._changes_before(token) for token in range(_FIRST_IDS))
        """Whether a byte can change the text of bytes before it."""

    def push(self, token: int) -> str:
        """Takes in a token and returns the text that is certain now."""
        self._window.append(token)
        if self._runs_change and self._is_fragment(token):
            return ""  # the text of a run depends on its end
        text = self._decode(self._window)
        stable = self._stable(text)
        new = self._new(text, stable)
        if self._shown == text:
            self._shorten()
        elif len(self._window) > _LONGEST_WINDOW and self._shown == stable and not self._runs_change:
            self._shorten_pending(text[len(stable) :])
        return new

    def preview(self, tokens: Sequence[int]) -> str:
        """Text that tokens would add, incomplete characters included; changes nothing."""
        text = self._decode([*self._window, *tokens])
        return text[len(self._shown) :] if text.startswith(self._shown) else self._decode(list(tokens))

    def finish(self) -> str:
        """Returns the rest of the text, incomplete characters as replacement characters, and begins a new text."""
        text = self._decode(self._window)
        new = text[_num_common(self._shown, text) :]
        self._window, self._shown, self._newest = [], "", 0
        return new

    def _stable(self, text: str) -> str:
        complete = text.rstrip(REPLACEMENT)
        if complete != text:
            self._fragment = self._window[-1] if self._fragment is None else self._fragment
            return complete if self._runs_change else text[: max(len(complete), len(text) - _MOST_PENDING)]
        if self._fragment is None:
            return text
        followed = self._decode([*self._window, self._fragment])
        if followed.startswith(text):
            return text
        self._runs_change = True
        return text[: _num_common(followed.rstrip(REPLACEMENT), text)]

    def _new(self, text: str, stable: str) -> str:
        before = self._shown
        if before.startswith(stable):
            return ""
        if not stable.startswith(before) and text.endswith(REPLACEMENT):
            return ""
        self._shown = stable
        return stable[_num_common(before, stable) :]

    def _shorten(self) -> None:
        recent = self._window[self._newest :]
        text = self._decode(recent)
        if text:
            self._window, self._shown, self._newest = recent, text, len(recent)

    def _shorten_pending(self, pending: str) -> None:
        """A character has at most four bytes."""
        recent = self._window[-_KEPT_WINDOW:]
        text = self._decode(recent)
        if text.endswith(pending):
            self._window, self._shown, self._newest = recent, text[: len(text) - len(pending)], 0

    def _changes_before(self, token: int) -> bool:
        if self._fragment is None or self._is_fragment(token):
            return False
        try:
            return not self._decode([token, self._fragment]).startswith(self._decode([token]))
        except _NO_SUCH_TOKEN:
            return False

    def _is_fragment(self, token: int) -> bool:
        if token not in self._fragments:
            try:
                self._fragments[token] = REPLACEMENT in self._decode([token])
            except _NO_SUCH_TOKEN:
                self._fragments[token] = False
        return self._fragments[token]


def _num_common(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
