# SPDX-License-Identifier: Apache-2.0
"""Many sequences through one model at once, padded on the right: what recording traces needs.

Right padding keeps each row's tokens at positions 0, 1, 2, ...; a causal model never looks past a row's end during the
first pass, and later passes mask the padding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from speckv.models.attention import without_plans
from speckv.models.cache import cache_keyword, growing_cache
from speckv.models.causal import CausalModel

LOGITS_ROWS = 128
"""Rows of logits that exist at one time; 128 x 152k float32 are 78 MB."""


TOKENS_AT_ONCE = 4096
"""Tokens, padding included, of one pass over whole rows."""


class PaddedBatch:
    """Cached sequences of unequal length that advance together.

    Attributes:
        lengths: Shape [batch]; tokens of each row so far.
    """

    def __init__(self, model: CausalModel) -> None:
        self.model = model
        self._cache = growing_cache(model.hf.config)
        self._cache_argument: dict[str, Any] = {cache_keyword(model.hf.model): self._cache}
        self._mask = torch.zeros(0, 0, dtype=torch.bool, device=model.device)
        self.lengths = torch.zeros(0, dtype=torch.long, device=model.device)

    @torch.inference_mode()
    def start(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Reads whole rows, some at a time, so that what a layer holds in between stays small.

        Returns:
            Hidden states of shape [batch, longest, hidden]; those past a row's end mean nothing.
        """
        longest = max(len(row) for row in rows)
        size = max(1, TOKENS_AT_ONCE // longest)
        parts = [PaddedBatch(self.model) for _ in range(0, len(rows), size)]
        states = [part._start(rows[i * size : (i + 1) * size]) for i, part in enumerate(parts)]
        if len(parts) == 1:
            self._cache, self._cache_argument = parts[0]._cache, parts[0]._cache_argument
            self._mask, self.lengths = parts[0]._mask, parts[0].lengths
            return states[0]
        self.lengths = torch.cat([part.lengths for part in parts])
        self._mask = torch.arange(longest, device=self.model.device)[None] < self.lengths[:, None]
        for index in range(len(parts[0]._cache.layers)):
            held: list[Any] = [part._cache.layers[index] for part in parts]
            keys, values = (_stack([getattr(layer, name) for layer in held], 2) for name in ("keys", "values"))
            self._cache.update(keys, values, index)
            for part in parts:
                part._cache.layers[index].reset()
        return _stack(states, 1)

    def _start(self, rows: Sequence[Sequence[int]]) -> Tensor:
        device = self.model.device
        self.lengths = torch.tensor([len(row) for row in rows], device=device)
        longest = int(self.lengths.max())
        ids = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(list(row), device=device)
        self._mask = torch.arange(longest, device=device)[None] < self.lengths[:, None]
        return self._read(input_ids=ids)

    @torch.inference_mode()
    def advance(self, tokens: Tensor) -> Tensor:
        """Appends one token a row, ids of shape [batch]; returns hidden states of shape [batch, hidden]."""
        column = torch.ones(len(tokens), 1, dtype=torch.bool, device=self.model.device)
        self._mask = torch.cat([self._mask, column], dim=1)
        hidden = self._read(
            input_ids=tokens[:, None], attention_mask=self._mask.long(), position_ids=self.lengths[:, None]
        )
        self.lengths = self.lengths + 1
        return hidden[:, 0]

    def _read(self, **inputs: Tensor) -> Tensor:
        with without_plans(self.model.device):
            output = self.model.hf.model(**inputs, use_cache=True, **self._cache_argument)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def keep(self, rows: Tensor) -> None:
        """Drops every row but the given ones, ids of shape [kept]."""
        self._cache.batch_select_indices(rows)
        self._mask, self.lengths = self._mask[rows], self.lengths[rows]

    def fork(self, rows: Tensor, lengths: Tensor) -> "PaddedBatch":
        """Copies rows, each cut to a length: the prefixes that roll-outs start from.

        Args:
            rows: Shape [copies]; a row may come many times.
            lengths: Shape [copies]; tokens that each copy keeps, at least 1.
        """
        copy = PaddedBatch(self.model)
        longest = int(lengths.max())
        for index, layer in enumerate(self._cache.layers):
            held: Any = layer
            copy._cache.update(held.keys[rows, :, :longest], held.values[rows, :, :longest], index)
        copy.lengths = lengths.clone()
        copy._mask = torch.arange(longest, device=self.model.device)[None] < lengths[:, None]
        return copy

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states of shape [rows, hidden], in float32; call with at most `LOGITS_ROWS` rows."""
        head = self.model.hf.get_output_embeddings()
        scores: Tensor = head(hidden).float()
        return scores


def _stack(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Joins parts along their first axis, padded with zeros to the longest along another."""
    longest = max(part.shape[axis] for part in parts)
    shape = [sum(len(part) for part in parts), *parts[0].shape[1:]]
    shape[axis] = longest
    joined = parts[0].new_zeros(shape)
    begin = 0
    for part in parts:
        joined[begin : begin + len(part)].narrow(axis, 0, part.shape[axis]).copy_(part)
        begin += len(part)
    return joined
