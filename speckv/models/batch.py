# SPDX-License-Identifier: Apache-2.0
"""Many sequences through one model at once, for recording traces."""

from collections.abc import Sequence

import torch
from torch import Tensor

from speckv.models.causal import CausalModel
from speckv.models.ragged import RaggedRows

LOGITS_ROWS = 128
"""Rows of logits that exist at one time; 128 x 152k float32 are 78 MB."""


class RecordedBatch:
    """Cached sequences of unequal length that advance together, one token each.

    Args:
        model: See `speckv.models.ragged.require_batches`.
        rows: For copies.
    """

    def __init__(self, model: CausalModel, rows: RaggedRows | None = None) -> None:
        self.model = model
        self._rows = rows or RaggedRows(model)

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row so far."""
        return self._rows.lengths

    def start(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Reads whole rows.

        Returns:
            Hidden states of shape [batch, longest, hidden]; those past a row's end mean nothing.
        """
        counts = [len(row) for row in rows]
        ids = torch.zeros(len(rows), max(counts), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : counts[i]] = torch.tensor(list(row))
        self._rows.add(len(rows))
        return self._rows.read(range(len(rows)), ids.to(self.model.device), counts)

    def advance(self, tokens: Tensor) -> Tensor:
        """Appends one token a row, ids of shape [batch]; returns hidden states of shape [batch, hidden]."""
        count = len(tokens)
        return self._rows.read(range(count), tokens[:, None], [1] * count)[:, 0]

    def keep(self, rows: Sequence[int]) -> None:
        """Drops every row but the given ones."""
        self._rows = self._rows.copy_of(rows, [self.lengths[row] for row in rows])

    def fork(self, rows: Sequence[int], lengths: Sequence[int]) -> "RecordedBatch":
        """Copies rows, each cut to a length: the prefixes that roll-outs start from.

        Args:
            rows: A row may be copied many times.
            lengths: Tokens that each copy keeps, at least 1.
        """
        return RecordedBatch(self.model, self._rows.copy_of(rows, lengths))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states of shape [states, hidden], in float32; call with at most `LOGITS_ROWS` states."""
        return self._rows.score(hidden).float()
