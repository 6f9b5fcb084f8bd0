# SPDX-License-Identifier: Apache-2.0
"""The target as a drafter sees it: what must hold of it, and its signals."""

import logging
import math
import weakref
from typing import Any

from speckv.errors import ConfigError
from speckv.integrations.llama_cpp.exactness import exact_width
from speckv.integrations.llama_cpp.library import Llama, has_exact_attention, require_rollback, usable_context
from speckv.runtime.signals import signals_of_logits

logger = logging.getLogger(__name__)
_UNKNOWN = (math.nan, math.nan)


class Target:
    """Reads a target's signals off the logits that it keeps.

    Args:
        lib: The module `llama_cpp`.
        llama: The target; held weakly, because it holds the drafter.
        temperature: Of the sampling, above 0; 1 for greedy decoding.
        widest: Tokens that one pass may have to read: the newest one and a draft.
        exact: Try out how many tokens it reads at once as it reads them one by one, and let no pass read more.

    Attributes:
        vocab_size: Tokens that it scores.
        context: Tokens that it has room for.
        widest: Tokens that one pass may read.

    Raises:
        ConfigError: naming the setting that cannot be.
    """

    def __init__(self, lib: Any, llama: Llama, *, temperature: float, widest: int, exact: bool) -> None:
        require_rollback(lib, llama, "target")
        _require_all_logits(llama)
        if not has_exact_attention(lib, llama):
            text = (
                "Expected a target made with flash_attn=True, got one without: its logits then depend on how many "
                "tokens are read at once, so that its text with a draft differs from its text without."
            )
            if exact:
                raise ConfigError(f"{text} Say so, or allow it with exact=False.")
            logger.warning(text)
        self.widest = _exact(llama, widest) if exact else widest
        self._llama = weakref.ref(llama)
        self._temperature = temperature
        self.vocab_size = llama.n_vocab()
        self.context = min(usable_context(llama), len(llama.scores))

    def signals(self, length: int) -> tuple[float, float]:
        """Entropy (nats) and confidence of what the newest of `length` tokens was chosen from; NaN if not to be had."""
        llama = self._llama()
        if llama is None or llama.n_tokens != length - 1:
            return _UNKNOWN  # another target calls, whose logits are elsewhere
        entropy, confidence, _ = signals_of_logits(llama.scores[length - 2], self._temperature)
        return entropy, confidence


def _exact(llama: Llama, widest: int) -> int:
    found = exact_width(llama, widest=widest)
    if found < min(2, widest):
        raise ConfigError(
            "Expected a target that reads two tokens at once with the logits of one by one, got other logits. On a CPU "
            "several threads share the attention over a 16-bit cache in another order for one token than for two: say "
            "type_k=8, type_v=8 (Q8_0) or n_threads=1, or allow other texts at near-ties with exact=False."
        )
    if found < widest:
        logger.info("The target reads %d tokens at once exactly as one by one; drafts are cut to %d.", found, found - 1)
    return found


def _require_all_logits(llama: Llama) -> None:
    # `draft_model=` makes llama-cpp-python keep all logits, but in a buffer of n_batch rows unless it was told
    # logits_all=True: it then fails in the midst of a text. A target that was given its drafter later keeps too few.
    rows, tokens = len(llama.scores), usable_context(llama)
    if rows < len(llama.input_ids) or not getattr(llama, "_logits_all", True):
        raise ConfigError(
            f"Expected a target made with logits_all=True, got one with {rows} rows of logits for {tokens} tokens: "
            "llama-cpp-python would fail once a text is longer. Say logits_all=True beside draft_model=."
        )
