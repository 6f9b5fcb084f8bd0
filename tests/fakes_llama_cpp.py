# SPDX-License-Identifier: Apache-2.0
"""llama-cpp-python without models: the few functions that are used, and a `Llama` whose logits are looked up.

`FakeLlama.generate` takes the steps of `llama_cpp.Llama.generate`, version 0.3.36: when it asks for a draft, with what,
and what it does with it. `tests/speckv/integrations/test_llama_cpp_real.py` holds the real one to the same.
"""

import ctypes
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

ENABLED, DISABLED = 1, 0
Table = NDArray[np.single]


def table(seed: int, vocab: int = 12, scale: float = 2.0) -> Table:
    """Logits by the last two tokens."""
    return np.random.default_rng(seed).normal(0, scale, (vocab, vocab, vocab)).astype(np.single)


def perturbed(logits: Table, seed: int, scale: float) -> Table:
    return logits + np.random.default_rng(seed).normal(0, scale, logits.shape).astype(np.single)


class FakeLlama:
    """One sequence of a model whose logits follow from its cache alone."""

    def __init__(
        self,
        logits: Table,
        *,
        n_ctx: int = 64,
        n_batch: int = 8,
        logits_all: bool = False,
        flash_attn: bool = False,
        draft_model: Any = None,
        ends: Sequence[int] = (),
        words: str = "",
        recurrent: bool = False,
        exact_width: int = 99,
        exact_context: int = 9999,
    ) -> None:
        self.logits, self.ends, self.words, self.recurrent = logits, frozenset(ends), words, recurrent
        self.draft_model = draft_model
        self._logits_all = logits_all or draft_model is not None
        self._vocab = int(logits.shape[-1])
        self._n_ctx = -(-n_ctx // 16) * 16  # the real one rounds up as well, to 256
        self.n_tokens = 0
        self.input_ids = np.zeros(n_ctx, np.intc)
        self.scores = np.full((n_ctx if logits_all else n_batch, self._vocab), np.nan, np.single)
        self.context_params = SimpleNamespace(flash_attn_type=ENABLED if flash_attn else DISABLED)
        self.metadata = {"general.name": "fake"}
        self.cache: list[int] = []
        self.newest = np.zeros(self._vocab, np.single)
        self.passes: list[int] = []
        self.fails = False
        self.exact_width, self.exact_context = exact_width, exact_context

    @property
    def ctx(self) -> "FakeLlama":
        return self

    @property
    def model(self) -> "FakeLlama":
        return self

    def n_ctx(self) -> int:
        return self._n_ctx

    def n_vocab(self) -> int:
        return self._vocab

    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False) -> bytes:
        del prev_tokens, special
        return " ".join(self.words[t] if self.words else str(t) for t in tokens).encode()

    def eval(self, tokens: Sequence[int]) -> None:
        if self.fails or any(not 0 <= t < self._vocab for t in tokens):
            raise RuntimeError("llama_decode returned -1")
        assert len(self.cache) >= self.n_tokens, "the cache lacks what it is said to hold"
        assert self.n_tokens + len(tokens) <= len(self.input_ids), "the context is full"
        del self.cache[self.n_tokens :]
        if tokens:
            self.passes.append(len(tokens))
        for token in tokens:
            self.cache.append(int(token))
            self.input_ids[self.n_tokens] = token
            self.newest[:] = self.logits[self.cache[-2] if len(self.cache) > 1 else 0, token]
            if len(tokens) > (self.exact_width if len(self.cache) <= self.exact_context else 1):
                self.newest[:] += 1e-3  # read by another kernel
            if self._logits_all:
                self.scores[self.n_tokens] = self.newest
            self.n_tokens += 1

    def reset(self) -> None:
        self.n_tokens = 0

    def generate(self, tokens: Sequence[int], *, seed: int | None = None) -> Iterator[int]:
        """Greedy, or drawn from softmax with one draw a token."""
        rng = None if seed is None else np.random.default_rng(seed)
        tokens = list(tokens)
        if self.n_tokens > 0:
            same = 0
            for a, b in zip(self.input_ids[: self.n_tokens].tolist(), tokens, strict=False):
                if a != b:
                    break
                same += 1
            reused = same - 1 if same == len(tokens) else same
            self.n_tokens, tokens = max(reused, 0), tokens[max(reused, 0) :]
        place = self.n_tokens + len(tokens) - 1
        while True:
            self.eval(tokens)
            while place < self.n_tokens:
                token = self._choose(place, rng)
                place += 1
                yield token
                tokens = [token]
                if place < self.n_tokens and token != self.input_ids[place]:
                    self.n_tokens = place
                    break
            if self.draft_model is not None:
                self.input_ids[self.n_tokens : self.n_tokens + 1] = tokens
                draft = self.draft_model(self.input_ids[: self.n_tokens + 1])
                assert draft.dtype == np.intc
                tokens.extend(draft.astype(int)[: self._n_ctx - self.n_tokens - 1].tolist())

    def _choose(self, place: int, rng: np.random.Generator | None) -> int:
        row = self.scores[place] if self._logits_all else self.newest
        if rng is None:
            return int(row.argmax())
        weights = np.exp(row.astype(np.float64) - row.max())
        return int(np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random()))


class LlamaDraftModel:
    """Stands for the library's abstract base."""

    def __call__(self, input_ids: NDArray[np.intc], /, **kwargs: Any) -> NDArray[np.intc]:
        raise NotImplementedError


def install(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Puts the fake where `import llama_cpp` looks."""
    module, speculative = ModuleType("llama_cpp"), ModuleType("llama_cpp.llama_speculative")
    names = {
        "LLAMA_FLASH_ATTN_TYPE_ENABLED": ENABLED,
        "llama_get_logits_ith": lambda ctx, _: ctx.newest.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        "llama_model_is_recurrent": lambda model: model.recurrent,
        "llama_model_is_hybrid": lambda _: False,
        "llama_model_get_vocab": lambda model: model,
        "llama_vocab_is_eog": lambda vocab, token: token in vocab.ends,
    }
    for name, value in names.items():
        setattr(module, name, value)
    speculative.LlamaDraftModel = LlamaDraftModel  # type: ignore[attr-defined]
    module.llama_speculative = speculative  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_speculative", speculative)
    return module
