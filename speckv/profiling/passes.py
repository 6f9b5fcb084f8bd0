# SPDX-License-Identifier: Apache-2.0
"""Times single passes of one model, of one sequence or of several together.

A pass is timed as the engine runs it: the model, the choice of tokens, the signals, and their way to the host. Every
width and both contexts take turns within a round, so that a slow moment of the machine, or a slow hour, falls on all of
them alike; medians are kept, and their spread.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from speckv.decoding.clock import device_clock
from speckv.decoding.open_draft import signal_rows, to_host
from speckv.decoding.protocols import Clock
from speckv.decoding.sampling import check_finite
from speckv.errors import ConfigError
from speckv.models.batch import TOKENS_AT_ONCE
from speckv.models.cache import cache_keyword, growing_cache
from speckv.models.causal import CausalModel
from speckv.models.signals import Scores
from speckv.types import GAMMA_MAX

WIDTHS = tuple(range(1, GAMMA_MAX + 2))
"""Plain decoding's to that of the deepest draft."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingPlan:
    """How passes are timed.

    Attributes:
        reference_context: Context length at which every width is timed, in tokens.
        far_context: Context length that gives the slope, timed at a few widths. Two lengths are enough: what a context
            adds is attention over a cache, bytes and products in proportion to its length.
        widths: Tokens scored of each sequence in a pass, ascending, the first 1; what lies between is interpolated.
        repeats: Timed rounds; a round times every width once.
        warmups: Rounds before them that are dropped: first calls allocate, choose kernels and wake a clock up.
    """

    reference_context: int = 256
    far_context: int = 1024
    widths: tuple[int, ...] = WIDTHS
    repeats: int = 7
    warmups: int = 2

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 1 <= self.reference_context < self.far_context:
            raise ConfigError(
                f"Expected 1 <= reference_context < far_context, got {self.reference_context} and {self.far_context}."
            )
        widths = self.widths
        if len(widths) < 2 or widths[0] != 1 or list(widths) != sorted(set(widths)):
            raise ConfigError(f"Expected at least two ascending widths, the first 1, got {list(widths)}.")
        if self.repeats < 1 or self.warmups < 1:
            raise ConfigError(f"Expected repeats and warmups of at least 1, got {self.repeats} and {self.warmups}.")

    @property
    def anchors(self) -> tuple[int, ...]:
        """Widths whose slope over the context is measured; the others' lie on the lines between them."""
        return tuple(sorted({self.widths[0], self.widths[len(self.widths) // 4], self.widths[-1]}))


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTimes:
    """Times of one model at one batch.

    Attributes:
        widths: Tokens scored of each sequence in a pass.
        seconds: Median at the reference context, one a width.
        slope_s: Seconds that a context token adds, one a width, at least 0.
        spread: Interquartile range over median, one a width.
    """

    widths: tuple[int, ...]
    seconds: tuple[float, ...]
    slope_s: tuple[float, ...]
    spread: tuple[float, ...]


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
        self._cache = growing_cache(model.hf.config)
        self._cache_argument: dict[str, Any] = {cache_keyword(model.hf): self._cache}
        self._length = 0

    @torch.inference_mode()
    def extend(self, tokens: Tensor, num_logits: int) -> Scores:
        ids = tokens.to(self._model.device)
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


def summarise(near: Mapping[int, Sequence[float]], far: Mapping[int, Sequence[float]], plan: TimingPlan) -> PassTimes:
    """Medians, slopes and spreads.

    Args:
        near: Width -> seconds of its timings at the reference context; every width of the plan.
        far: The same at the far context; the anchors.
        plan: Contexts and widths.
    """
    medians = tuple(float(np.median(near[width])) for width in plan.widths)
    distance = plan.far_context - plan.reference_context
    rises = [
        max(0.0, (float(np.median(far[width])) - float(np.median(near[width]))) / distance) for width in plan.anchors
    ]
    quartiles = [np.percentile(near[width], [25, 75]) for width in plan.widths]
    return PassTimes(
        widths=plan.widths,
        seconds=medians,
        slope_s=slopes(medians, plan.widths, plan.anchors, rises, plan.reference_context),
        spread=tuple(float(high - low) / median for (low, high), median in zip(quartiles, medians, strict=True)),
    )


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


def slopes(
    seconds: Sequence[float],
    widths: Sequence[int],
    anchors: Sequence[int],
    rises: Sequence[float],
    reference_context: int,
) -> tuple[float, ...]:
    """Slopes of every width from those at a few.

    An empty context must still take time, so a noisy slope is kept at or below half of what would use it all up.

    >>> slopes((1.0, 1.0, 1.0), (1, 2, 3), (1, 3), (0.01, 0.09), 10)
    (0.01, 0.05, 0.05)
    """
    between = np.interp(widths, anchors, rises)
    return tuple(np.minimum(between, 0.5 * np.array(seconds) / reference_context).tolist())


def _use(scores: Scores) -> None:
    """Does with a pass's scores what the engine does: tokens and signals go to the host in one transfer."""
    check_finite(to_host([signal_rows(scores.signals, scores.best)]), "model")


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
