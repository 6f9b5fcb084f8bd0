# SPDX-License-Identifier: Apache-2.0
"""Drafts and targets of one tokenizer whose scoring layers have different numbers of rows.

Models of one family pad their vocabularies differently: Qwen2.5 7B scores 152,064 rows, 0.5B 151,936, and the tokenizer
of both has 151,665 tokens.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from speckv.models.causal import CausalModel
from speckv.models.parts import with_modules


def with_vocabulary(draft: CausalModel, vocab_size: int) -> CausalModel:
    """A draft that scores exactly the rows of a target, sharing its weights; itself where it does already.

    Rows that only the target has score minus infinity, so they are never proposed. Rows that only the draft has are
    left out. A token that the draft has no embedding for is read as its last one, which costs at most acceptance.

    Args:
        draft: Of the target's tokenizer.
        vocab_size: Rows that the target scores.
    """
    if draft.vocab_size == vocab_size:
        return draft
    hf: Any = draft.hf
    inner, head = hf.get_input_embeddings(), hf.get_output_embeddings()
    replacements: dict[nn.Module, nn.Module] = {head: _FittedHead(head, vocab_size)}
    if inner.weight.shape[0] < vocab_size:
        replacements[inner] = _ClampedEmbedding(inner)
    fitted = with_modules(hf, replacements)
    return replace(draft, hf=fitted, vocab_size=vocab_size, spare_rooms=[], graph_faults=[])


class _ClampedEmbedding(nn.Module):
    """An embedding that reads ids past its end as its last one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @property
    def weight(self) -> Tensor:
        weight: Any = self.inner.weight
        return weight  # type: ignore[no-any-return]

    def forward(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.inner(ids.clamp(max=self.weight.shape[0] - 1))
        return embedded


class _FittedHead(nn.Module):
    """A scoring layer cut or padded to a number of rows."""

    def __init__(self, inner: nn.Module, vocab_size: int) -> None:
        super().__init__()
        self.inner, self._vocab_size = inner, vocab_size

    @property
    def weight(self) -> Tensor:
        weight: Any = self.inner.weight
        return weight  # type: ignore[no-any-return]

    def forward(self, hidden: Tensor) -> Tensor:
        scores: Tensor = self.inner(hidden)[..., : self._vocab_size]
        missing = self._vocab_size - scores.shape[-1]
        if missing > 0:
            scores = torch.cat([scores, scores.new_full((*scores.shape[:-1], missing), -torch.inf)], dim=-1)
        return scores
