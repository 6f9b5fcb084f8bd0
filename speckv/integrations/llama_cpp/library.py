# SPDX-License-Identifier: Apache-2.0
"""llama-cpp-python as it is used here: `Llama` as a protocol, functions of `llama.h`, and the target's signals.

llama.cpp's kernels depend on the number of tokens read at once; their sums differ in the last bits, which quantised
activations enlarge, so a text with drafts may differ. On x86 with version 0.3.36, logits differed by 0.2 to 1.2: from
two tokens on where two threads share the attention over more than 256 tokens, from four on with K-quants.
"""

import importlib
import logging
import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from speckv.errors import ConfigError
from speckv.runtime.signals import signals_of_logits

TokenIds = NDArray[np.intc]


class Llama(Protocol):
    """The part of `llama_cpp.Llama` that is used: one model with one sequence in its cache.

    Attributes:
        n_tokens: Tokens in the cache; after setting it lower the next `eval` drops the rest.
        input_ids: Those tokens, in a buffer as long as the requested context.
        scores: Row i holds the logits after token i, where the model keeps all of them.
    """

    n_tokens: int
    input_ids: TokenIds
    scores: NDArray[np.single]
    context_params: Any
    draft_model: Any

    @property
    def ctx(self) -> Any:
        """Handle of the context."""

    @property
    def model(self) -> Any:
        """Handle of the model."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Metadata of the GGUF file."""

    def n_ctx(self) -> int:
        """Length of the context: the requested one, rounded up."""

    def n_vocab(self) -> int:
        """Size of the vocabulary."""

    def eval(self, tokens: Sequence[int]) -> None:
        """Reads tokens after the first `n_tokens`."""

    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False) -> bytes:
        """Text of tokens."""


def library() -> Any:
    """The module `llama_cpp`; ConfigError if it is not installed."""
    try:
        return importlib.import_module("llama_cpp")
    except ImportError as error:
        raise ConfigError(
            f"Expected the package llama-cpp-python, found none that can be imported ({error}). "
            "Install it: pip install llama-cpp-python==0.3.36"
        ) from error


def newest_logits(lib: Any, llama: Llama) -> NDArray[np.single]:
    """Logits after the last token read, in llama.cpp's own buffer, which the next `eval` overwrites."""
    row: NDArray[np.single] = np.ctypeslib.as_array(lib.llama_get_logits_ith(llama.ctx, -1), shape=(llama.n_vocab(),))
    return row


def text_ends(lib: Any, llama: Llama) -> Callable[[int], bool]:
    """Whether a token ends a text."""
    vocabulary, is_end = lib.llama_model_get_vocab(llama.model), lib.llama_vocab_is_eog
    return lambda token: bool(is_end(vocabulary, token))


def require_rollback(lib: Any, llama: Llama, role: str) -> None:
    """Checks that a cache can drop its newest tokens, unlike that of a recurrent or hybrid model."""
    if lib.llama_model_is_recurrent(llama.model) or lib.llama_model_is_hybrid(llama.model):
        raise ConfigError(
            f"Expected a {role} with attention alone, got a recurrent or hybrid model, which cannot drop rejected "
            "tokens. Choose another, or decode without a draft."
        )


def usable_context(llama: Llama) -> int:
    """Tokens that fit: the buffer has the requested length, the context may be longer."""
    return min(llama.n_ctx(), len(llama.input_ids))


CONTEXTS = (8, 512)
"""Measured context lengths: a short one, and one at which threads share the attention."""


def exact_width(llama: Llama, *, widest: int, contexts: Sequence[int] = CONTEXTS) -> int:
    """The greatest width up to which all logits equal those of reading tokens one by one.

    Empties the cache and takes as long as reading some 600 tokens. The model must have `logits_all=True`; contexts that
    do not fit are skipped.
    """
    found = widest
    for context in contexts:
        if context + widest <= min(usable_context(llama), len(llama.scores)):
            found = _exact_width(llama, found, context)
    llama.n_tokens = 0
    return found


def _exact_width(llama: Llama, widest: int, context: int) -> int:
    # Any text will do: a pattern with a long period, of tokens that every vocabulary has.
    tokens = [1 + (7 * place * place + place) % min(1000, llama.n_vocab() - 1) for place in range(context + widest)]
    llama.n_tokens = 0
    llama.eval(tokens[:context])
    for token in tokens[context:]:
        llama.eval([token])
    expected = llama.scores[context : context + widest].copy()
    for width in range(2, widest + 1):
        llama.n_tokens = context
        llama.eval(tokens[context : context + width])
        if not np.array_equal(llama.scores[context : context + width], expected[:width]):
            return width - 1
    return widest


logger = logging.getLogger(__name__)
_UNKNOWN = (math.nan, math.nan)


class Target:
    """A target with signals computed from the logits that it keeps; ConfigError for an unsupported setting."""

    def __init__(self, lib: Any, llama: Llama, *, temperature: float, widest: int, exact: bool) -> None:
        require_rollback(lib, llama, "target")
        _require_all_logits(llama)
        if llama.context_params.flash_attn_type != lib.LLAMA_FLASH_ATTN_TYPE_ENABLED:
            text = (
                "Expected a target made with flash_attn=True, got one without: its logits then depend on how many "
                "tokens are read at once, so that its text with a draft differs from its text without."
            )
            if exact:
                raise ConfigError(f"{text} Pass flash_attn=True, or allow other texts with exact=False.")
            logger.warning(text)
        self.widest = _exact(llama, widest) if exact else widest
        self._llama = weakref.ref(llama)  # the target holds the drafter, which holds this object
        self._temperature = temperature
        self.vocab_size = llama.n_vocab()
        self._read_s = 0.0
        llama.eval = self._timed(type(llama).eval)  # type: ignore[method-assign, assignment]
        self.context = min(usable_context(llama), len(llama.scores))

    def _timed(self, evaluate: Callable[[Llama, Sequence[int]], None]) -> Callable[[Sequence[int]], None]:
        """`Llama.eval` of the target, timed: between two calls of a drafter the caller's own work would count, too."""

        def timed(tokens: Sequence[int]) -> None:
            llama, started = self._llama(), time.perf_counter()
            assert llama is not None
            evaluate(llama, tokens)
            self._read_s += time.perf_counter() - started

        return timed

    def take_seconds(self) -> float:
        """Seconds of the target's passes since the last call."""
        found, self._read_s = self._read_s, 0.0
        return found

    def signals(self, length: int) -> tuple[float, float]:
        """Entropy (nats) and confidence at the newest of `length` tokens; NaN if not known."""
        llama = self._llama()
        if llama is None or llama.n_tokens != length - 1:
            return _UNKNOWN  # the text is another target's
        entropy, confidence, _ = signals_of_logits(llama.scores[length - 2], self._temperature)
        return entropy, confidence


def _exact(llama: Llama, widest: int) -> int:
    found = exact_width(llama, widest=widest)
    if found < min(2, widest):
        raise ConfigError(
            "Expected a target that reads two tokens at once with the logits of one by one, got other logits. On a CPU "
            "several threads share the attention over a 16-bit cache in another order for one token than for two: pass "
            "type_k=8, type_v=8 (Q8_0) or n_threads=1, or allow other texts at near-ties with exact=False."
        )
    if found < widest:
        logger.info("The target reads %d tokens at once exactly as one by one; drafts are cut to %d.", found, found - 1)
    return found


def _require_all_logits(llama: Llama) -> None:
    # `draft_model=` makes llama-cpp-python keep all logits, but in a buffer of n_batch rows unless it was made with
    # logits_all=True: it then fails in the midst of a text. A target that was given its drafter later keeps too few.
    rows, tokens = len(llama.scores), usable_context(llama)
    if rows < len(llama.input_ids) or not getattr(llama, "_logits_all", True):
        raise ConfigError(
            f"Expected a target made with logits_all=True, got one with {rows} rows of logits for {tokens} tokens: "
            "llama-cpp-python would fail once a text is longer. Pass logits_all=True beside draft_model=."
        )
