# SPDX-License-Identifier: Apache-2.0
"""How many tokens a model reads at once with the very logits that it has when it reads them one by one.

A text with a draft is the text without one as long as that holds. llama.cpp chooses kernels by the number of tokens.
Their sums differ in the last bits, which quantisation of activations then makes large. On x86 with version 0.3.36
logits differed by 0.2 to 1.2: from two tokens on where two threads share the attention over more than 256 tokens, and
from four tokens on where weights are K-quants.
"""

from collections.abc import Sequence

import numpy as np

from speckv.integrations.llama_cpp.library import Llama, usable_context

CONTEXTS = (8, 512)
"""Lengths at which it is tried: a short one, and one at which attention is shared among threads."""


def exact_width(llama: Llama, *, widest: int, contexts: Sequence[int] = CONTEXTS) -> int:
    """The greatest width at which, and below which, all logits equal those of reading one by one.

    It is tried out, which takes as long as reading some 600 tokens. What was in the cache is forgotten.

    Args:
        llama: Keeps the logits of all tokens (`logits_all=True`).
        widest: Greatest width of interest, in tokens.
        contexts: Tokens before; those that do not fit are left out.

    Returns:
        1 to `widest`; 1 means that no two tokens are read as one by one.
    """
    found = widest
    for context in contexts:
        if context + widest <= min(usable_context(llama), len(llama.scores)):
            found = _exact_width(llama, found, context)
    llama.n_tokens = 0
    return found


def _exact_width(llama: Llama, widest: int, context: int) -> int:
    # Some text or other: a pattern that repeats late, of tokens that any vocabulary has.
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
