# SPDX-License-Identifier: Apache-2.0
"""Proposers of tokens for llama-cpp-python: a second `Llama`, or a lookup in the text so far."""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from speckv.errors import ConfigError, ModelError
from speckv.integrations.llama_cpp.library import (
    Llama,
    TokenIds,
    newest_logits,
    require_rollback,
    text_ends,
    usable_context,
)
from speckv.ngrams import NgramIndex
from speckv.runtime.signals import signals_of_logits

_UNKNOWN = (math.nan, math.nan, math.nan)
_STRIDE, _TAIL = 61, 320
"""Compared tokens: another tokenizer differs nearly everywhere, an extended one at the end."""


class Proposed(NamedTuple):
    """A token, whether it ends the text, and entropy (nats), confidence and margin (NaN if not requested)."""

    token: int
    ends: bool
    signals: tuple[float, float, float]


class Proposer(Protocol):
    """Proposes tokens deterministically, so that the text stays the target's own."""

    @property
    def name(self) -> str:
        """For messages."""

    def room(self, length: int) -> int:
        """Tokens that can be proposed after `length` tokens."""

    def read(self, text: TokenIds) -> None:
        """Begins a draft after a text, whatever was read before."""

    def propose(self, *, signals: bool) -> Proposed | None:
        """The next token after the text and this draft's proposals, if any."""

    def attach(self, lib: Any, target: Llama) -> None:
        """Sets the target. ModelError if vocabularies differ, ConfigError if target and draft are one object."""


class LlamaDraft:
    """Drafts greedily with a second model; ConfigError if its cache cannot be rolled back.

    Its cache keeps the prefix in common with the text, so a step reads the tokens emitted since the last step in one
    pass, then one token a pass. The last proposed token is not read.
    """

    def __init__(self, lib: Any, llama: Llama) -> None:
        require_rollback(lib, llama, "draft")
        self.llama = llama
        self._lib, self._ends = lib, text_ends(lib, llama)
        self._unread: Sequence[int] = ()

    @property
    def name(self) -> str:
        """The model's name in its file."""
        return self.llama.metadata.get("general.name", "draft")

    def room(self, length: int) -> int:
        """Room in its context."""
        return max(0, usable_context(self.llama) - length + 1)

    def read(self, text: TokenIds) -> None:
        """Keeps the common prefix of cache and text."""
        llama = self.llama
        known = llama.input_ids[: llama.n_tokens]
        llama.n_tokens = _common(known, text[:-1])  # at least one token is read, for its logits
        self._unread = text[llama.n_tokens :].tolist()

    def propose(self, *, signals: bool) -> Proposed:
        """Reads the unread tokens and proposes the likeliest one."""
        self.llama.eval(self._unread)
        row = newest_logits(self._lib, self.llama)
        token = int(row.argmax())
        self._unread = (token,)
        return Proposed(token, self._ends(token), signals_of_logits(row) if signals else _UNKNOWN)

    def attach(self, lib: Any, target: Llama) -> None:
        """Compares sizes of the vocabularies and texts of sampled tokens."""
        del lib
        if target is self.llama:
            raise ConfigError("Expected two Llama objects, got one as target and draft. Load the file twice.")
        size, other = self.llama.n_vocab(), target.n_vocab()
        if size != other:
            raise ModelError(
                f"Expected target and draft to score the same tokens, got a target with {other} and a draft with "
                f"{size}. Choose a draft of the target's family, of the same vocabulary."
            )
        for token in sorted({*range(0, size, _STRIDE), *range(max(size - _TAIL, 0), size)}):
            mine, theirs = (llama.detokenize([token], special=True) for llama in (self.llama, target))
            if mine != theirs:
                raise ModelError(
                    f"Expected target and draft to have the same tokens, got {theirs!r} and {mine!r} for token "
                    f"{token}. Choose a draft with the target's tokenizer."
                )


class LookupDraft:
    """Proposes what most often followed the newest `longest` to `shortest` tokens; signals come from counts."""

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise ConfigError(f"Expected 1 <= shortest <= longest, got {shortest} and {longest}. Usual are 2 and 4.")
        self.longest, self.shortest = longest, shortest
        self._index = NgramIndex(longest, shortest)
        self._unread: Sequence[int] = ()
        self._ends: Callable[[int], bool] = lambda _: False

    @property
    def name(self) -> str:
        """Its name in recordings."""
        return f"prompt-lookup({self.longest},{self.shortest})"

    def room(self, length: int) -> int:
        """No limit."""
        return sys.maxsize - length

    def read(self, text: TokenIds) -> None:
        """Keeps the common prefix of index and text."""
        kept = _common(np.array(self._index.tokens, np.intc), text)
        self._index.truncate(kept)
        self._unread = text[kept:].tolist()

    def propose(self, *, signals: bool) -> Proposed | None:
        """Looks the next token up; signals are always computed."""
        del signals
        self._index.extend(self._unread)
        guess = self._index.guess()
        self._unread = ()
        if guess is None:
            return None
        self._unread = (guess.token,)
        return Proposed(guess.token, self._ends(guess.token), (guess.entropy, guess.confidence, guess.margin))

    def attach(self, lib: Any, target: Llama) -> None:
        """Reads from the target which tokens end a text."""
        self._ends = text_ends(lib, target)


def _common(known: TokenIds, text: TokenIds) -> int:
    shorter = min(len(known), len(text))
    differs = np.flatnonzero(known[:shorter] != text[:shorter])
    return int(differs[0]) if len(differs) else shorter
