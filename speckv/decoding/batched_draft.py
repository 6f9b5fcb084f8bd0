# SPDX-License-Identifier: Apache-2.0
"""Drafts of many rows at once, each of its own depth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from speckv.decoding.rows import CachedRows, Row, padded
from speckv.decoding.sampling import SamplingConfig, check_finite, choose, draw, gumbel_noise, warp_logits
from speckv.decoding.step import up_to_end
from speckv.models.signals import signals
from speckv.models.transfer import to_device
from speckv.types import NUM_SIGNALS, BoolArray, FloatArray, IntArray

GoOnRows = Callable[[IntArray, FloatArray], BoolArray]
"""Rows of shape [asked] and signals of the tokens that each drafted so far, of shape [asked, drafted, 3] -> whether
each drafts another one."""


@dataclass(slots=True, kw_only=True)
class BatchDraft:
    """What rows draft in one step; rows in the order of the caches.

    Attributes:
        gammas: Asked for, or where a row was stopped.
        counts: Tokens of each row's draft, as far as the host knows: an end of text may stand inside.
        tokens: Shape [rows, greatest count], on the device; what stands behind a count means nothing.
        rows_signals: Shape [rows, greatest count, 3], likewise.
        probs: Of rejection sampling, on the host: the distributions that each row's tokens were drawn from.
        noise: Of Gumbel coupling, on the device: one of shape [count + 1, vocab] a row.
    """

    gammas: list[int]
    counts: list[int]
    tokens: Tensor
    rows_signals: Tensor
    probs: list[list[Tensor]]
    noise: list[Tensor]

    @staticmethod
    def begin(
        rows: Sequence[Row],
        gammas: Sequence[int],
        sampling: SamplingConfig,
        vocab_size: int,
        device: torch.device,
        *,
        draft_context: int,
    ) -> "BatchDraft":
        """Nothing drafted yet, and each row's limit; see `Row.draft_limit`."""
        counts = [row.draft_limit(gamma, draft_context) for row, gamma in zip(rows, gammas, strict=True)]
        for row in rows:
            if row.processors is not None:
                row.processors.begin_draft()
        width = max(counts)
        noise: list[Tensor] = []
        if sampling.mode == "gumbel":
            for row, count in zip(rows, counts, strict=True):
                places = range(row.num_tokens, row.num_tokens + count + 1)
                noise.append(to_device(torch.stack([gumbel_noise(row.seed, p, vocab_size) for p in places]), device))
        return BatchDraft(
            gammas=list(gammas),
            counts=counts,
            tokens=torch.zeros(len(rows), width, dtype=torch.long, device=device),
            rows_signals=torch.zeros(len(rows), width, NUM_SIGNALS, device=device),
            probs=[[] for _ in rows],
            noise=noise,
        )

    def read(self, eos_token_ids: frozenset[int]) -> tuple[list[list[int]], list[FloatArray]]:
        """Each row's draft up to an end of text, and its signals of shape [drafted, 3]; waits for the device.

        Raises:
            ProbabilityError: if the draft model returned NaN.
        """
        found, ids = self.rows_signals.cpu(), self.tokens.tolist()
        check_finite(found, "draft")
        drafts = [up_to_end(row[:count], eos_token_ids) for row, count in zip(ids, self.counts, strict=True)]
        array: FloatArray = found.numpy()
        return drafts, [array[row, : len(draft)] for row, draft in enumerate(drafts)]


class Drafter:
    """Drafts with one model for many rows.

    On an accelerator the host waits only where it must: to draw from probabilities, or to ask whether to go on.
    Otherwise rows that drafted an end of text run on to their limit, and what follows is dropped.

    Args:
        cache: The rows inside the draft.
        sampling: How tokens are chosen.
        eos_token_ids: Tokens that end a draft.
        device: Where the draft runs.
    """

    def __init__(
        self, cache: CachedRows, sampling: SamplingConfig, eos_token_ids: frozenset[int], device: torch.device
    ) -> None:
        self.cache = cache
        self._sampling, self._eos, self._device = sampling, eos_token_ids, device

    def draft(self, rows: Sequence[Row], draft: BatchDraft, go_on: GoOnRows | None) -> None:
        """Drafts every row to its limit, an end of text, or where `go_on` ends it."""
        looks = go_on is not None or self._device.type == "cpu" or self._sampling.mode == "rejection"
        for depth in range(max(draft.counts)):
            active = [row for row, count in enumerate(draft.counts) if count > depth]
            if not active:
                break
            self._draft_token(rows, draft, active, depth)
            if looks:
                self._end(draft, active, depth + 1)
            if go_on is not None:
                _ask(draft, active, depth + 1, go_on)

    def _draft_token(self, rows: Sequence[Row], draft: BatchDraft, active: list[int], depth: int) -> None:
        if depth == 0:
            unread = [rows[i].context[self.cache.lengths[i] :] for i in active]
            tokens, counts = to_device(torch.tensor(padded(unread)), self._device), list(map(len, unread))
        else:
            tokens, counts = _of(draft.tokens, active)[:, depth - 1 : depth], [1] * len(active)
        logits = self.cache.extend(active, tokens, counts, last_only=True)
        processed = self._processed(rows, draft, active, depth, logits)
        chosen = self._choose(rows, draft, active, depth, warp_logits(processed, self._sampling))
        where = slice(None) if len(active) == len(rows) else self._index(active)
        draft.tokens[where, depth] = chosen
        draft.rows_signals[where, depth] = signals(logits)

    def _processed(
        self, rows: Sequence[Row], draft: BatchDraft, active: list[int], depth: int, logits: Tensor
    ) -> Tensor:
        if all(rows[i].processors is None for i in active):
            return logits
        lines = []
        for i, line in zip(active, torch.split(logits.float(), 1), strict=True):
            processors = rows[i].processors
            lines.append(processors.draft(rows[i].ids(draft.tokens[i, :depth]), line) if processors else line)
        return torch.cat(lines)

    def _choose(self, rows: Sequence[Row], draft: BatchDraft, active: list[int], depth: int, warped: Tensor) -> Tensor:
        if self._sampling.mode != "rejection":
            noise = torch.stack([draft.noise[i][depth] for i in active]) if draft.noise else None
            return choose(warped, self._sampling, noise)
        drawn = []
        for i, probs in zip(active, warped.softmax(-1).cpu(), strict=True):
            draft.probs[i].append(probs)
            drawn.append(draw(probs[None], rows[i].generator))
        return to_device(torch.cat(drawn), self._device)

    def _index(self, active: list[int]) -> Tensor:
        return to_device(torch.tensor(active), self._device)

    def _end(self, draft: BatchDraft, active: list[int], drafted: int) -> None:
        """Ends the drafts whose newest token is an end of text."""
        for i, token in enumerate(draft.tokens[:, drafted - 1].tolist()):
            if i in active and token in self._eos:
                draft.counts[i] = drafted


def _ask(draft: BatchDraft, active: list[int], drafted: int, go_on: GoOnRows) -> None:
    """Ends the drafts that shall not go on, of those that could."""
    asked = [i for i in active if draft.counts[i] > drafted]
    if not asked:
        return
    found = draft.rows_signals[:, :drafted].cpu()[asked]
    check_finite(found, "draft")
    answers = go_on(np.array(asked, np.int64), found.numpy())
    for i, answer in zip(asked, answers, strict=True):
        if not answer:
            draft.counts[i] = draft.gammas[i] = drafted


def _of(values: Tensor, active: list[int]) -> Tensor:
    """Some rows of a tensor; all of them without a copy."""
    return values if len(active) == len(values) else values[to_device(torch.tensor(active), values.device)]
