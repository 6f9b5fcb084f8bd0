# SPDX-License-Identifier: Apache-2.0
"""Times single passes of a model, for one sequence or a batch, and single proposals of a lookup.

A pass includes the choice of tokens, the signals, and their transfer to the host, as in the engine. Widths and contexts
are interleaved, which cancels drift of the machine.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from speckv.decoding.clock import device_clock
from speckv.decoding.prompt_lookup import LookupDrafter, PromptLookup
from speckv.decoding.protocols import Clock
from speckv.decoding.request import to_host
from speckv.decoding.sampling import check_finite
from speckv.errors import ConfigError
from speckv.models.cache import cache_keyword, growing_cache
from speckv.models.causal import CausalModel
from speckv.models.device import without_plans
from speckv.models.ragged import TOKENS_AT_ONCE
from speckv.models.signals import Scores
from speckv.profiling.timing import PassTimes, TimingPlan, summarise

LOOKUPS = 50
"""Proposals of a lookup that make one timing, as one takes microseconds."""
PHRASE, CHANGED = 64, 0.1
"""Period of the repetitive text that is looked up in, in tokens, and the share of its tokens that are random."""


class Rows(Protocol):
    """Cached sequences of one length that advance together."""

    def extend(self, tokens: Tensor, num_logits: int) -> Scores:
        """Appends ids of shape [batch, width]; scores batch * num_logits rows."""

    def truncate(self, length: int) -> None:
        """Drops every token past `length`."""


class _OneRow:
    def __init__(self, model: CausalModel) -> None:
        self._sequence = model.sequence()

    def extend(self, tokens: Tensor, num_logits: int) -> Scores:
        return self._sequence.score(tokens[0].tolist(), num_logits=num_logits)

    def truncate(self, length: int) -> None:
        self._sequence.truncate(length)


class _EqualRows:
    """Equal rows need no padding, so no mask."""

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self._cache = growing_cache(model.hf)
        self._cache_argument: dict[str, Any] = {cache_keyword(model.hf): self._cache}
        self._length = 0

    @torch.inference_mode()
    def extend(self, tokens: Tensor, num_logits: int) -> Scores:
        ids = tokens.to(self._model.device)
        with without_plans(self._model.device):
            output = self._model.hf(input_ids=ids, use_cache=True, logits_to_keep=num_logits, **self._cache_argument)
        self._length += ids.shape[1]
        return Scores.of(output.logits.flatten(0, 1))

    def truncate(self, length: int) -> None:
        surplus = self._length - length
        if surplus > 0:
            self._cache.crop(-surplus)
            self._length = length


def open_rows(model: CausalModel, batch: int) -> Rows:
    """Empty sequences: the engine's own for a batch of 1, else a batched cache."""
    return _OneRow(model) if batch == 1 else _EqualRows(model)


def time_passes(
    model: CausalModel,
    plan: TimingPlan,
    *,
    batch: int = 1,
    drafting: bool,
    clock: Clock | None = None,
    rows: Callable[[CausalModel, int], Rows] = open_rows,
    on_round: Callable[[int, int, float], None] = lambda *_: None,
) -> PassTimes:
    """Times one model at every width; `on_round` receives rounds done, all rounds, and the seconds so far.

    When drafting, a pass scores its last token only; a verification scores all and then truncates the cache.
    """
    if plan.far_context + plan.widths[-1] > model.context_limit:
        raise ConfigError(
            f"Expected far_context of at most {model.context_limit - plan.widths[-1]} for {model.name}, "
            f"got {plan.far_context}."
        )
    seconds = _time_rounds(model, plan, batch, drafting, clock or device_clock(model.device), rows, on_round)
    near = {width: seconds[plan.reference_context, width] for width in plan.widths}
    return summarise(near, {width: seconds[plan.far_context, width] for width in plan.anchors}, plan)


def _time_rounds(
    model: CausalModel,
    plan: TimingPlan,
    batch: int,
    drafting: bool,
    clock: Clock,
    rows: Callable[[CausalModel, int], Rows],
    on_round: Callable[[int, int, float], None],
) -> dict[tuple[int, int], list[float]]:
    """(Context, width) -> seconds of every timed pass."""
    generator = torch.Generator().manual_seed(0)
    longest = plan.far_context + plan.widths[-1]
    tokens = torch.randint(0, min(model.vocab_size, 50_000), (batch, longest), generator=generator)
    piece = max(1, TOKENS_AT_ONCE // batch)
    held = {}
    for context in (plan.reference_context, plan.far_context):
        held[context] = rows(model, batch)
        for begin in range(0, context, piece):
            held[context].extend(tokens[:, begin : min(begin + piece, context)], 1)
    jobs = [(plan.reference_context, w) for w in plan.widths]
    jobs += [(plan.far_context, w) for w in plan.anchors]
    seconds: dict[tuple[int, int], list[float]] = {job: [] for job in jobs}
    begun = time.perf_counter()
    for number in range(plan.warmups + plan.repeats):
        if number:
            on_round(number, plan.warmups + plan.repeats, time.perf_counter() - begun)
        for context, width in jobs:
            chosen = tokens[:, context : context + width]
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            started = clock()
            scores = held[context].extend(chosen, 1 if drafting else width)
            # One transfer of tokens and signals to the host, as in the engine.
            check_finite(to_host([scores.signals], [scores.best]), "model")
            if not drafting:
                held[context].truncate(context)
            taken = clock() - started
            held[context].truncate(context)
            if number >= plan.warmups:
                seconds[context, width].append(taken)
    return seconds


def pass_s(model: CausalModel, width: int) -> float:
    """Seconds of the second of two passes of a width, without a context."""
    rows, tokens, taken = open_rows(model, 1), torch.zeros((1, width), dtype=torch.int64), 0.0
    for _ in range(2):
        started = time.perf_counter()
        scores = rows.extend(tokens, 1)
        check_finite(to_host([scores.signals], [scores.best]), "model")
        taken = time.perf_counter() - started
    return taken


def time_lookup(lookup: PromptLookup, plan: TimingPlan) -> PassTimes:
    """Times a proposal by the number of tokens read before it: reading, lookup, tensors for the engine, truncation."""
    near = _time_lookup_rounds(lookup, plan, plan.widths, plan.reference_context)
    far = _time_lookup_rounds(lookup, plan, plan.anchors, plan.far_context)
    return summarise(near, far, plan)


def _time_lookup_rounds(
    lookup: PromptLookup, plan: TimingPlan, widths: Sequence[int], context: int
) -> dict[int, list[float]]:
    text = _repetitive(context + max(widths), lookup.vocab_size)
    drafter = LookupDrafter(lookup)
    drafter.read(text[:context])
    seconds: dict[int, list[float]] = {width: [] for width in widths}
    for number in range(plan.warmups + plan.repeats):
        for width in widths:
            unread = text[context : context + width]
            rounds = [_propose(drafter, unread, context) for _ in range(LOOKUPS)]
            if number >= plan.warmups:
                seconds[width].append(float(np.median(rounds)))
    return seconds


def _propose(drafter: LookupDrafter, unread: list[int], context: int) -> float:
    started = time.perf_counter()
    if drafter.can_propose(unread):
        drafter.propose((), 0)
    drafter.truncate(context)  # as after every step
    return time.perf_counter() - started


def _repetitive(length: int, vocab_size: int) -> list[int]:
    rng = np.random.default_rng(0)
    text = np.resize(rng.integers(0, vocab_size, PHRASE), length)
    changed = rng.random(length) < CHANGED
    return [int(token) for token in np.where(changed, rng.integers(0, vocab_size, length), text)]
