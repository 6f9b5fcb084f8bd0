# SPDX-License-Identifier: Apache-2.0
"""Times single passes of one model, of one sequence or of several together.

A pass is timed as the engine runs it: the model, the choice of tokens, the signals, and their way to the host. Every
width and both contexts take turns within a round, so that a slow moment of the machine, or a slow hour, falls on all of
them alike; medians are kept, and their spread.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from speckv.decoding.clock import device_clock
from speckv.decoding.protocols import Clock
from speckv.decoding.request import signal_rows, to_host
from speckv.decoding.sampling import check_finite
from speckv.errors import ConfigError
from speckv.models.cache import cache_keyword, growing_cache
from speckv.models.causal import CausalModel
from speckv.models.device import without_plans
from speckv.models.ragged import TOKENS_AT_ONCE
from speckv.models.signals import Scores
from speckv.profiling.pass_times import PassTimes, TimingPlan, summarise


class Rows(Protocol):
    """Cached sequences of one length that advance together."""

    def extend(self, tokens: Tensor, num_logits: int) -> Scores:
        """Appends ids of shape [batch, width]; scores batch * num_logits rows."""

    def truncate(self, length: int) -> None:
        """Forgets every token past `length`."""


class _OneRow:
    """The sequence that the engine itself decodes with."""

    def __init__(self, model: CausalModel) -> None:
        self._sequence = model.sequence()

    def extend(self, tokens: Tensor, num_logits: int) -> Scores:
        return self._sequence.score(tokens[0].tolist(), num_logits=num_logits)

    def truncate(self, length: int) -> None:
        self._sequence.truncate(length)


class _EqualRows:
    """Rows of equal length in one cache: no padding, so no mask."""

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
    """Starts empty sequences: the engine's own for one, a batched cache for more."""
    return _OneRow(model) if batch == 1 else _EqualRows(model)


def time_passes(
    model: CausalModel,
    plan: TimingPlan,
    *,
    batch: int = 1,
    drafting: bool,
    clock: Clock | None = None,
    rows: Callable[[CausalModel, int], Rows] = open_rows,
) -> PassTimes:
    """Times one model at every width.

    Args:
        model: Draft or target.
        plan: Contexts and rounds.
        batch: Sequences that pass together.
        drafting: Whether a pass scores its last token alone, as drafting does, or all, as verification does, which
            also cuts the cache back afterwards.
        clock: The device's by default.
        rows: Starts the sequences.

    Raises:
        ConfigError: if the far context does not fit the model.
    """
    if plan.far_context + plan.widths[-1] > model.context_limit:
        raise ConfigError(
            f"Expected far_context of at most {model.context_limit - plan.widths[-1]} for {model.name}, "
            f"got {plan.far_context}."
        )
    seconds = _time_rounds(model, plan, batch, drafting, clock or device_clock(model.device), rows)
    near = {width: seconds[plan.reference_context, width] for width in plan.widths}
    return summarise(near, {width: seconds[plan.far_context, width] for width in plan.anchors}, plan)


def _time_rounds(
    model: CausalModel,
    plan: TimingPlan,
    batch: int,
    drafting: bool,
    clock: Clock,
    rows: Callable[[CausalModel, int], Rows],
) -> dict[tuple[int, int], list[float]]:
    """Seconds of every timed pass, by context and width."""
    generator = torch.Generator().manual_seed(0)
    longest = plan.far_context + plan.widths[-1]
    tokens = torch.randint(0, min(model.vocab_size, 50_000), (batch, longest), generator=generator)
    piece = max(1, TOKENS_AT_ONCE // batch)  # so that what a layer holds in between stays small
    held = {}
    for context in (plan.reference_context, plan.far_context):
        held[context] = rows(model, batch)
        for begin in range(0, context, piece):
            held[context].extend(tokens[:, begin : min(begin + piece, context)], 1)
    jobs = [(plan.reference_context, w) for w in plan.widths]
    jobs += [(plan.far_context, w) for w in plan.anchors]
    seconds: dict[tuple[int, int], list[float]] = {job: [] for job in jobs}
    for number in range(plan.warmups + plan.repeats):
        for context, width in jobs:
            chosen = tokens[:, context : context + width]
            _synchronise(model.device)
            started = clock()
            _use(held[context].extend(chosen, 1 if drafting else width))
            if not drafting:
                held[context].truncate(context)
            taken = clock() - started
            held[context].truncate(context)
            if number >= plan.warmups:
                seconds[context, width].append(taken)
    return seconds


def _use(scores: Scores) -> None:
    """Does with a pass's scores what the engine does: tokens and signals go to the host in one transfer."""
    check_finite(to_host([signal_rows(scores.signals, scores.best)]), "model")


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
