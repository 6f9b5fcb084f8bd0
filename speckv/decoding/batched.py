# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding of many requests together, each with a gamma of its own.

Every row's text is the one that `engine` decodes for the request alone. A step drafts in as many passes as the greatest
gamma, from which rows with a smaller one drop out; one verify pass reads all rows, padded to the longest draft. Rows
that finish leave, and others may join between steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from speckv.decoding.batched_draft import BatchDraft, Drafter, GoOnRows
from speckv.decoding.clock import device_clock
from speckv.decoding.engine import own_processors
from speckv.decoding.protocols import Clock
from speckv.decoding.rows import BatchModel, CachedRows, Row, padded
from speckv.decoding.sampling import SamplingConfig, check_finite, choose, warp_logits
from speckv.decoding.step import DecodeStep
from speckv.decoding.verification import verify_match, verify_rejection
from speckv.errors import ConfigError
from speckv.models.signals import signals
from speckv.models.transfer import to_device
from speckv.types import BoolArray, FloatArray, IntArray


class _Judged(NamedTuple):
    """A row's draft and what the target made of it."""

    drafted: list[int]
    draft_signals: FloatArray
    num_accepted: int
    tokens: list[int]
    target_signals: FloatArray


class BatchEngine:
    """Decodes many requests together with a target and a draft.

    A step's seconds are shared: each row's outcome carries those of the whole step, which is how long the row waited
    for its tokens. Sum them over the steps of one row, never over the rows of one step. An error inside a step or a
    prefill ends every request.

    Args:
        target: The model whose text is kept.
        draft: The model that proposes; None allows gamma 0 alone.
        eos_token_ids: Tokens that end a text.
        sampling: How tokens are chosen.
        clock: Tells instants; that of the device by default.
    """

    def __init__(
        self,
        target: BatchModel,
        draft: BatchModel | None,
        *,
        eos_token_ids: frozenset[int] = frozenset(),
        sampling: SamplingConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.target, self.draft = target, draft
        self.eos_token_ids = eos_token_ids
        self.sampling = sampling or SamplingConfig()
        self.clock = clock or device_clock(target.device)
        self._begin()

    @contextmanager
    def _or_nothing_runs(self) -> Iterator[None]:
        """Drops every request where a part of a step raises: the caches may hold half of what they should."""
        try:
            yield
        except BaseException:
            self._begin()
            raise

    def _begin(self) -> None:
        self._rows: list[Row] = []  # a row's index is its place in both caches
        self._num_admitted = 0
        self._cache = self.target.rows()
        self._drafter = (
            Drafter(self.draft.rows(), self.sampling, self.eos_token_ids, self.draft.device) if self.draft else None
        )

    # -- requests -------------------------------------------------------------------------------------------------

    def start(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int | Sequence[int], requests: Sequence[str] = ()
    ) -> list[DecodeStep]:
        """Drops every running request and starts others; see `admit`."""
        self._begin()
        return self.admit(prompts, max_new_tokens=max_new_tokens, requests=requests)

    def admit(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int | Sequence[int], requests: Sequence[str] = ()
    ) -> list[DecodeStep]:
        """Lets requests join: both models read the prompts, and each emits its first token, from the target's prefill.

        Args:
            prompts: Of at least one token id each.
            max_new_tokens: Token budget, at least 1, the first token included; one for all, or one a request.
            requests: Names; with the sampling seed a name fixes every draw. Numbers from "0" on by default.

        Returns:
            One step a request, in their order, with the seconds of all prefills; whoever finished is not running.

        Raises:
            BudgetError: if a prompt is empty, or it and one token do not fit the context; nothing has changed then.
            ConfigError: if there is no prompt, or not one name or budget a prompt.
        """
        rows = self._new_rows(prompts, max_new_tokens, requests)
        started = self.clock()
        device, places = self.target.device, range(len(self._rows), len(self._rows) + len(rows))
        tokens, counts = to_device(torch.tensor(padded(prompts)), device), list(map(len, prompts))
        with self._or_nothing_runs():
            for cache in self._caches():
                cache.add(len(rows))
            logits = self._cache.extend(places, tokens, counts, last_only=True)
            self._draft_prompts(places, tokens, counts)
            self._rows += rows
            self._num_admitted += len(rows)
            draft = self._open(rows, [0] * len(rows))
            return self._emit(len(self._rows) - len(rows), rows, draft, logits, started, started)

    def _draft_prompts(self, places: Sequence[int], tokens: Tensor, counts: Sequence[int]) -> None:
        """Reads prompts with the draft, those that fit its context; the others are decoded without drafts."""
        if self._drafter is None or self.draft is None:
            return
        fitting = [i for i, count in enumerate(counts) if count <= self.draft.context_limit]
        if len(fitting) == len(counts):
            self._drafter.cache.extend(places, tokens, counts, last_only=True)
        elif fitting:
            kept = [counts[i] for i in fitting]
            self._drafter.cache.extend([places[i] for i in fitting], tokens[fitting, : max(kept)], kept, last_only=True)

    def _open(self, rows: Sequence[Row], gammas: Sequence[int]) -> BatchDraft:
        return BatchDraft.begin(
            rows,
            gammas,
            self.sampling,
            self.target.vocab_size,
            self.target.device,
            draft_context=self.draft.context_limit if self.draft else 0,
        )

    def _new_rows(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int], requests: Sequence[str]
    ) -> list[Row]:
        budgets = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        names = requests or [str(self._num_admitted + i) for i in range(len(prompts))]
        if not prompts or len(budgets) != len(prompts) or len(names) != len(prompts):
            raise ConfigError(
                f"Expected at least one prompt, and a name and a budget for each, got {len(prompts)} prompts, "
                f"{len(names)} names and {len(budgets)} budgets."
            )
        asked = zip(names, prompts, budgets, strict=True)
        rows = [
            Row.begin(self._num_admitted + i, name, prompt, budget, self.target.context_limit, self.sampling)
            for i, (name, prompt, budget) in enumerate(asked)
        ]
        for row in rows:
            row.processors = own_processors(self.target, row.context, row.budget)
        return rows

    @property
    def running(self) -> tuple[Row, ...]:
        """The running requests, in the order in which they were admitted."""
        return tuple(self._rows[place] for place in self._order())

    def draft_lag(self, row: Row) -> int:
        """Emitted tokens of a running row that the draft has not read, the newest one not counted."""
        read = self._drafter.cache.lengths[self._rows.index(row)] if self._drafter else 0
        return len(row.context) - 1 - read

    def _order(self) -> list[int]:
        """Places of the running rows, oldest request first."""
        return sorted(range(len(self._rows)), key=lambda place: self._rows[place].number)

    def _caches(self) -> list[CachedRows]:
        return [self._cache, self._drafter.cache] if self._drafter else [self._cache]

    # -- a step ---------------------------------------------------------------------------------------------------

    def step(self, gammas: Sequence[int], go_on: GoOnRows | None = None) -> list[DecodeStep]:
        """Drafts up to a gamma of each row's own, verifies all drafts in one pass, emits tokens in every row.

        Args:
            gammas: One for each of `running`, at least 0; cut to the row's budget and at a drafted end of text.
            go_on: Asked after each draft pass for the rows that could draft another token; see `Engine.step`. Rows are
                given as indices into `running`.

        Returns:
            One step a row, in the order of `running` before it. Rows that finished are no longer running after it.

        Raises:
            ConfigError: if nothing runs, or there is not one gamma a row, or one is negative, or positive without a
                draft.
        """
        order = self._order()
        if not order:
            raise ConfigError("Expected a running request, got none. Call start or admit first.")
        if len(gammas) != len(order):
            raise ConfigError(f"Expected one gamma for each of {len(order)} running requests, got {len(gammas)}.")
        if min(gammas) < 0 or (max(gammas) > 0 and self._drafter is None):
            raise ConfigError(f"Expected gammas >= 0, and 0 where there is no draft, got {list(gammas)}.")
        rank = {place: i for i, place in enumerate(order)}
        started = self.clock()
        rows = list(self._rows)
        asked = [int(gammas[rank[place]]) for place in range(len(rows))]
        with self._or_nothing_runs():
            draft = self._open(rows, asked)
            drafted = started
            if self._drafter is not None and max(draft.counts) > 0:
                self._drafter.draft(rows, draft, _ranked(go_on, rank))
                drafted = self.clock()
            steps = self._emit(0, rows, draft, self._verify(rows, draft), started, drafted)
        return [steps[place] for place in order]

    def _verify(self, rows: Sequence[Row], draft: BatchDraft) -> Tensor:
        newest = to_device(torch.tensor([row.context[-1:] for row in rows]), self.target.device)
        ids = torch.cat([newest, draft.tokens[:, : max(draft.counts)]], dim=1)
        return self._cache.extend(range(len(rows)), ids, [count + 1 for count in draft.counts])

    def _judge(self, rows: Sequence[Row], draft: BatchDraft, logits: Tensor) -> list[_Judged]:
        """What the target keeps; `logits` has count + 1 lines a row, row after row. Waits for the device."""
        sizes = [count + 1 for count in draft.counts]
        found = signals(logits)
        warped = warp_logits(_processed(rows, draft, logits), self.sampling)
        if self.sampling.mode == "rejection":
            verdicts = warped.softmax(-1)
        else:
            noise = [one[:size] for one, size in zip(draft.noise, sizes, strict=True)] if draft.noise else []
            verdicts = choose(warped, self.sampling, torch.cat(noise) if noise else None)
        drafts, draft_signals = draft.read(self.eos_token_ids)
        verdicts, found = verdicts.cpu(), found.cpu()
        check_finite(found, "target")  # as not a number as the logits are
        judged = []
        for i, (row, verdict, lines) in enumerate(
            zip(rows, torch.split(verdicts, sizes), torch.split(found, sizes), strict=True)
        ):
            tokens = torch.tensor(drafts[i], dtype=torch.long)
            if self.sampling.mode == "rejection":
                draft_probs = torch.stack(draft.probs[i][: len(tokens)]) if drafts[i] else verdict[:0]
                kept = verify_rejection(tokens, draft_probs, verdict[: len(tokens) + 1], generator=row.generator)
            else:
                kept = verify_match(tokens, verdict[: len(tokens) + 1])
            count = int(kept.num_accepted)
            judged.append(_Judged(drafts[i], draft_signals[i], count, kept.tokens[: count + 1].tolist(), lines.numpy()))
        return judged

    def _emit(
        self, first: int, rows: Sequence[Row], draft: BatchDraft, logits: Tensor, started: Any, drafted: Any
    ) -> list[DecodeStep]:
        """Emits tokens in the rows from place `first` on, cuts caches back, and lets finished rows go."""
        judged = self._judge(rows, draft, logits)
        emitted = [row.emit(j.tokens, self.eos_token_ids) for row, j in zip(rows, judged, strict=True)]
        for row, tokens in zip(rows, emitted, strict=True):
            if row.processors is not None:
                row.processors.commit(len(tokens))
        for cache in self._caches():
            for place, row in enumerate(rows, first):
                cache.truncate(place, len(row.context) - 1)
        ended = self.clock()
        draft_s, verify_s = float(drafted - started), float(ended - drafted)
        steps = [
            DecodeStep.of(
                gamma=gamma,
                drafted=j.drafted,
                draft_signals=j.draft_signals,
                num_kept=j.num_accepted,
                tokens=tokens,
                target_signals=j.target_signals,
                draft_s=draft_s,
                verify_s=verify_s,
                finish=row.finish,
            )
            for row, gamma, tokens, j in zip(rows, draft.gammas, emitted, judged, strict=True)
        ]
        for place in reversed(range(len(self._rows))):
            if self._rows[place].finish is not None:
                self._remove(place)
        return steps

    def _remove(self, place: int) -> None:
        for cache in self._caches():
            cache.remove(place)
        self._rows[place] = self._rows[-1]
        self._rows.pop()


def _processed(rows: Sequence[Row], draft: BatchDraft, logits: Tensor) -> Tensor:
    """The target's scores as each row's processors leave them."""
    if all(row.processors is None for row in rows):
        return logits
    parts = []
    sizes = [count + 1 for count in draft.counts]
    for i, (row, lines) in enumerate(zip(rows, torch.split(logits.float(), sizes), strict=True)):
        drafted = draft.tokens[i, : draft.counts[i]]
        parts.append(row.processors.verify(row.ids(drafted[:0]), drafted, lines) if row.processors else lines)
    return torch.cat(parts)


def _ranked(go_on: GoOnRows | None, rank: Mapping[int, int]) -> GoOnRows | None:
    """Asks about places as indices into the running rows."""
    if go_on is None:
        return None
    ask = go_on

    def ranked(places: IntArray, draft_signals: FloatArray) -> BoolArray:
        return ask(np.array([rank[place] for place in places.tolist()], np.int64), draft_signals)

    return ranked
