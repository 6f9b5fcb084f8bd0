# SPDX-License-Identifier: Apache-2.0
"""What is used of llama-cpp-python, all of it public: `Llama` as a protocol, and a few functions of `llama.h`."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from speckv.errors import ConfigError

TokenIds = NDArray[np.intc]


class Llama(Protocol):
    """What is used of `llama_cpp.Llama`: one model with one sequence in its cache.

    Attributes:
        n_tokens: Tokens in the cache; setting it lower makes the next `eval` forget the rest.
        input_ids: Those tokens, in a buffer as long as the context that was asked for.
        scores: Row i holds the logits behind token i, where the model keeps all of them.
        context_params: The C structure that the context was made with.
        draft_model: What proposes tokens to it.
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
        """Of the GGUF file."""

    def n_ctx(self) -> int:
        """Tokens that the context holds: what was asked for, rounded up."""

    def n_vocab(self) -> int:
        """Tokens that the model scores."""

    def eval(self, tokens: Sequence[int]) -> None:
        """Reads tokens behind the first `n_tokens` ones."""

    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False) -> bytes:
        """Text of tokens."""


def library() -> Any:
    """The module `llama_cpp`.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        return importlib.import_module("llama_cpp")
    except ImportError as error:
        raise ConfigError(
            f"Expected the package llama-cpp-python, found none that can be imported ({error}). "
            "Install it: pip install llama-cpp-python==0.3.36"
        ) from error


def base_class() -> type:
    """The class that llama-cpp-python wants drafters to be of.

    Raises:
        ConfigError: if the package is not installed.
    """
    library()
    found: type = importlib.import_module("llama_cpp.llama_speculative").LlamaDraftModel
    return found


def newest_logits(lib: Any, llama: Llama) -> NDArray[np.single]:
    """Logits behind the last token that was read: llama.cpp's own buffer, good until the next `eval`.

    It is there whether or not the model keeps the logits of all tokens, which costs memory for the whole context.
    """
    row: NDArray[np.single] = np.ctypeslib.as_array(lib.llama_get_logits_ith(llama.ctx, -1), shape=(llama.n_vocab(),))
    return row


def text_ends(lib: Any, llama: Llama) -> Callable[[int], bool]:
    """Tells tokens that end a text."""
    vocabulary, is_end = lib.llama_model_get_vocab(llama.model), lib.llama_vocab_is_eog
    return lambda token: bool(is_end(vocabulary, token))


def has_exact_attention(lib: Any, llama: Llama) -> bool:
    """Whether attention runs on its own kernel; without it logits always depend on how many tokens are read at once."""
    return bool(llama.context_params.flash_attn_type == lib.LLAMA_FLASH_ATTN_TYPE_ENABLED)


def require_rollback(lib: Any, llama: Llama, role: str) -> None:
    """Passes if a model can forget its newest tokens.

    Args:
        lib: The module.
        llama: Target or draft.
        role: Which of them, for the message.

    Raises:
        ConfigError: if it is recurrent, in part or in whole.
    """
    if lib.llama_model_is_recurrent(llama.model) or lib.llama_model_is_hybrid(llama.model):
        raise ConfigError(
            f"Expected a {role} with attention alone, got a recurrent or hybrid model, which cannot forget tokens that "
            "were not accepted. Choose another, or decode without a draft."
        )


def usable_context(llama: Llama) -> int:
    """Tokens that really fit: the buffer is as long as what was asked for, the context is rounded up."""
    return min(llama.n_ctx(), len(llama.input_ids))
