# SPDX-License-Identifier: Apache-2.0
"""What learning costs: time lost to the best constants, request by request, where the requests change half-way.

The text does not depend on the controller, so two controllers decode the same tokens of a request and their seconds
compare directly. A half's reference is its best constant gamma in hindsight, which nobody knows beforehand: regret
below zero means that a learner does better than any constant could.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speckv.errors import ConfigError

Float64 = NDArray[np.float64]
IntArray = NDArray[np.int64]

WINDOW = 10
"""Requests of one look at the pace."""
TAIL = 20
"""Requests at the end of a half that say at what pace a learner arrived."""
TOLERANCE = 0.02


def draw_half(sequences: Sequence[int], number: int, rng: np.random.Generator) -> list[int]:
    """Draws the requests of a half: every sequence equally often, give or take one, in a random order.

    Args:
        sequences: Distinct recordings of the half's kind.
        number: Requests to draw.
        rng: Of the draw.

    >>> sorted(draw_half([3, 5], 4, np.random.default_rng(0)))
    [3, 3, 5, 5]
    """
    if not len(sequences):
        raise ConfigError("Expected at least 1 recording to draw requests from, got none.")
    passes = [rng.permutation(np.asarray(sequences)) for _ in range(-(-number // len(sequences)))]
    drawn: list[int] = np.concatenate(passes)[:number].tolist()
    return drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Hindsight:
    """The constants that a stream is judged by.

    Attributes:
        gammas: Best constant of each half.
        reference: Shape [requests]; seconds of each request under its half's constant.
        kept: Shape [requests]; seconds under the first half's constant all through.
    """

    gammas: tuple[int, int]
    reference: Float64
    kept: Float64


def hindsight(by_gamma: Float64, change: int) -> Hindsight:
    """Finds each half's best constant by total seconds; ties go to the smaller gamma.

    Args:
        by_gamma: Shape [gammas, requests]; seconds of each request under each constant, from 0.
        change: First request of the second half.

    >>> found = hindsight(np.array([[1.0, 1.0, 3.0], [2.0, 2.0, 2.0]]), 2)
    >>> found.gammas, found.reference.tolist(), found.kept.tolist()
    ((0, 1), [1.0, 1.0, 2.0], [1.0, 1.0, 3.0])
    """
    first, second = (int(part.sum(axis=1).argmin()) for part in (by_gamma[:, :change], by_gamma[:, change:]))
    reference = np.concatenate([by_gamma[first, :change], by_gamma[second, change:]])
    return Hindsight(gammas=(first, second), reference=reference, kept=by_gamma[first])


def cumulative_regret(seconds: Float64, reference: Float64) -> Float64:
    """Seconds lost to the reference up to and with each request, along the last axis.

    >>> cumulative_regret(np.array([2.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.5])).tolist()
    [1.0, 1.0, 0.5]
    """
    regret: Float64 = np.cumsum(seconds - reference, axis=-1)
    return regret


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How long a learner took to get to its own final pace.

    Attributes:
        requests: Whole requests before it was there; 0 if it lost nothing.
        steps: Decode steps that those took, a mean over orders.
        level: Its final pace: the reference's seconds over its own.
    """

    requests: int
    steps: float
    level: float


def recovery(
    seconds: Float64,
    reference: Float64,
    steps: IntArray,
    *,
    window: int = WINDOW,
    tail: int = TAIL,
    tolerance: float = TOLERANCE,
) -> Recovery:
    """Measures when a learner has come within a tolerance of the pace that it ends one half of a stream with.

    Pace is the reference's seconds over the learner's on the same requests, so hard and easy prompts weigh alike, with
    sums over all orders: one order's window is too noisy for 2 %. The learner has recovered after r requests if the
    window of requests that begins there is at most `tolerance` below the pace of the last `tail` requests; the first
    such r counts. There always is one, because the tail consists of windows. A learner that settles on a poor pace is
    there quickly: read the level as well.

    Args:
        seconds: Shape [orders, requests]; the learner's, of one half.
        reference: The same shape.
        steps: The same shape; the learner's decode steps.
        window: Requests of one look.
        tail: Requests that say at what pace it arrived; a multiple of `window`.
        tolerance: In [0, 1).

    Raises:
        ConfigError: if the half is too short, or the tail is not made of windows.
    """
    number = seconds.shape[1]
    if window < 1 or tail < window or tail % window or number < tail:
        raise ConfigError(
            f"Expected a tail of whole windows, at most as long as the half of {number} requests, "
            f"got tail {tail} and window {window}."
        )
    ours, theirs = seconds.sum(axis=0), reference.sum(axis=0)
    level = float(theirs[-tail:].sum() / ours[-tail:].sum())
    pace = _window_sums(theirs, window) / _window_sums(ours, window)
    # The tail's best window is at least as fast as the whole of it, but for rounding.
    requests = int((pace >= (1.0 - tolerance) * level * (1.0 - 1e-12)).argmax())
    return Recovery(requests=requests, steps=float(steps[:, :requests].sum(axis=1).mean()), level=level)


def _window_sums(values: Float64, window: int) -> Float64:
    sums: Float64 = np.convolve(values, np.ones(window), mode="valid")
    return sums


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerRegret:
    """One learner on one stream.

    Attributes:
        curves: Shape [orders, requests]; cumulative regret in seconds.
        first: Regret of the first half over the reference's time in it, all orders together.
        second: The same for the second half.
        over_clairvoyant: Extra time over the clairvoyant's, over the clairvoyant's, in the whole stream.
        start: How long it took to its pace in the first half, knowing nothing.
        change: How long it took to its pace in the second half.
    """

    curves: Float64
    first: float
    second: float
    over_clairvoyant: float
    start: Recovery
    change: Recovery


def learner_regret(
    seconds: Float64, steps: IntArray, reference: Float64, clairvoyant: Float64, change: int
) -> LearnerRegret:
    """Sums up a learner's runs.

    Args:
        seconds: Shape [orders, requests]; the learner's.
        steps: The same shape; its decode steps.
        reference: The same shape; best constant of each half.
        clairvoyant: The same shape; least possible.
        change: First request of the second half.
    """
    before, after = np.s_[:, :change], np.s_[:, change:]

    def relative(part: tuple[slice, slice]) -> float:
        return float(seconds[part].sum() / reference[part].sum() - 1.0)

    return LearnerRegret(
        curves=cumulative_regret(seconds, reference),
        first=relative(before),
        second=relative(after),
        over_clairvoyant=float(seconds.sum() / clairvoyant.sum() - 1.0),
        start=recovery(seconds[before], reference[before], steps[before]),
        change=recovery(seconds[after], reference[after], steps[after]),
    )
