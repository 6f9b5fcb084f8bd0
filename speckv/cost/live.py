# SPDX-License-Identifier: Apache-2.0
"""Step times learned while decoding: the seconds of a step by the number of drafted tokens, for one compression.

Where draft and verify passes are timed apart, each has its own estimate; otherwise whole steps are used. Both start
from a prior of which only the shape counts, hold outliers back, forget, and notice a lasting change.

Source:
    Ours; the constants were chosen by replay, as in `benchmarks.self_timed`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speckv.errors import ConfigError
from speckv.types import GAMMA_MAX

Float64 = NDArray[np.float64]

HALF_LIFE = 200.0
"""Steps after which a sample counts half."""
LEAST_NOISE = 0.02
FIRST_NOISE = 0.05
MEDIAN_TO_DEVIATION = 1.48
"""Standard deviation of a normal variable over the median of its absolute value."""
NOISE_STEP = 0.1
CLIP, FIRST_CLIP, NO_CLIP = 0.7, 2.0, 99.0
"""How far the logarithm of a sample may lie from the prediction; beyond, it is held there."""
RUN = 5
"""Steps in a row that are off on one side before a change is assumed."""
LEAST_OFFSET = 0.15
WEIGHT_AFTER_CHANGE = 0.2
MOST_LAG = 8
"""A first draft pass that has more tokens to read says nothing of other passes, unless it is fast."""
SHAPE_STD = 0.07
"""Relative deviation of a width's time from the line, where that is well known."""
JUMP_STD = 0.3
SURE_WEIGHT, REFIT_EVERY = 10.0, 4
"""The curve is fitted after each sample of a length with fewer samples, and after every fourth one of others."""
RATIO_DEPTH = 4
"""Drafted tokens up to which the growth of whole steps tells the time of a draft pass."""
VERIFY_SLOPE_STD, STEP_SLOPE_STD = 0.2, 0.5
FIRST_PASS_WEIGHT = 3.0
"""Samples at which the first draft pass of a step is told apart half from further ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimesPrior:
    """Shape of the times before anything was measured, in units of plain decoding.

    Attributes:
        draft: A draft pass.
        verify: Verifying each number of drafted tokens from 0; the first is 1.
    """

    draft: float
    verify: tuple[float, ...]

    def __post_init__(self) -> None:
        """Checks that all are positive."""
        if self.draft <= 0 or min(self.verify, default=0.0) <= 0 or not math.isclose(self.verify[0], 1.0):
            raise ConfigError(f"Expected positive times in units of plain decoding, got {self}.")

    @staticmethod
    def flat(gamma_max: int = GAMMA_MAX, draft: float = 0.3) -> "TimesPrior":
        """Verification as fast at every width as plain decoding; what is assumed without a measurement."""
        return TimesPrior(draft=draft, verify=(1.0,) * (gamma_max + 1))

    @staticmethod
    def of(draft_s: float, verify_s: Sequence[float]) -> "TimesPrior":
        """The shape of measured times."""
        return TimesPrior(draft=draft_s / verify_s[0], verify=tuple(v / verify_s[0] for v in verify_s))

    @property
    def step(self) -> list[float]:
        """Whole steps."""
        return [v + n * self.draft for n, v in enumerate(self.verify)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedStep:
    """What a step took, in seconds.

    Attributes:
        seconds: The whole step.
        first_draft_s, more_draft_s: The first draft pass, and all further ones together; None if not timed.
        verify_s: The target's pass; None if not timed.
        lag: Emitted tokens that the draft had to read first.
        first_draft: Whether nothing was drafted in the request before: the draft may have read the prompt.
    """

    num_drafted: int
    seconds: float
    first_draft_s: float | None = None
    more_draft_s: float | None = None
    verify_s: float | None = None
    lag: int = 0
    first_draft: bool = False

    @property
    def has_passes(self) -> bool:
        """Whether passes were timed apart, by a clock that is fine enough."""
        if self.verify_s is None or self.verify_s <= 0:
            return False
        if not self.num_drafted:
            return True
        drafts = (self.first_draft_s, self.more_draft_s if self.num_drafted > 1 else 1.0)
        return all(seconds is not None and seconds > 0 for seconds in drafts)


class _Means:
    """Means of logarithms whose samples fade, never below a weight of 1 in all."""

    def __init__(self, size: int) -> None:
        self.weight, self.mean = [0.0] * size, [0.0] * size

    def age(self, rows: range) -> None:
        weight = self.weight
        if sum(weight[row] for row in rows) > 1.0:
            for row in rows:
                weight[row] *= _FADE

    def add(self, row: int, seconds: float, predicted: float | None, clip: float, count: int = 1) -> None:
        """Adds `count` equal samples, within `clip` of a prediction if there is one."""
        value = math.log(seconds)
        if predicted is not None:
            middle = math.log(predicted)
            clip = max(clip, FIRST_CLIP) if self.weight[row] < 1.0 else clip
            value = min(max(value, middle - clip), middle + clip)
        self.weight[row] += count
        self.mean[row] += count * (value - self.mean[row]) / self.weight[row]

    def move(self, rows: range, offset: float) -> None:
        """Moves the means by an offset and doubts them from now on."""
        total = sum(self.weight[row] for row in rows)
        factor = min(WEIGHT_AFTER_CHANGE / total, 1.0) if total else 1.0
        for row in rows:
            self.weight[row] *= factor
            self.mean[row] += offset


_FADE = 2.0 ** (-1.0 / HALF_LIFE)


class _Curve:
    """Seconds by drafted tokens: the prior's shape, corrected by a line with a jump at 1, and by what remains.

    `rising`: from 1 token on they never fall; a wider verify pass may be faster, a step that drafts more is not.
    """

    def __init__(self, shape: Sequence[float], slope_std: float, *, rising: bool) -> None:
        self.shape, self.rising = [value / shape[0] for value in shape], rising
        self.means = _Means(len(shape))
        self.values, self.known = list(self.shape), False
        self._slope = 1.0 / slope_std**2
        self._rows = range(1), range(1, len(shape))

    def add(self, drafted: int, seconds: float, clip: float) -> None:
        for rows in self._rows:
            self.means.age(rows)
        self.means.add(drafted, seconds, self.values[drafted] if self.known else None, clip)

    def move(self, drafts: bool, offset: float) -> None:
        self.means.move(self._rows[drafts], offset)

    def fit(self, noise: float) -> None:
        weight, mean, shape = self.means.weight, self.means.mean, self.shape
        seen = [n for n, w in enumerate(weight) if w > 1e-3]
        if not seen:
            return
        total = sum(weight[n] for n in seen)
        log_scale = sum(weight[n] * (mean[n] - math.log(shape[n])) for n in seen) / total
        line = self._line(seen, log_scale, noise)
        shrink = max((noise / SHAPE_STD) ** 2, 0.3)
        rest = {n: weight[n] / (weight[n] + shrink) * (mean[n] - log_scale - math.log(line[n])) for n in seen}
        scale, values = math.exp(log_scale), []
        for value, left in zip(line, _interpolated(rest, len(shape)), strict=True):
            values.append(scale * value * math.exp(left))
        self.values, self.known = _running_max(values, 1) if self.rising else values, True

    def _line(self, seen: Sequence[int], log_scale: float, noise: float) -> list[float]:
        """The shape plus a at 0 drafted tokens, b + c n at n > 0: penalised least squares, a and b drawn together."""
        weight, mean, shape = self.means.weight, self.means.mean, self.shape
        pull = 1.0 / JUMP_STD**2
        aa = bb = pull + 0.1
        bc, cc = 0.0, self._slope
        ya = yb = yc = 0.0
        for n in seen:
            p = shape[n]
            left = math.exp(mean[n] - log_scale) - p
            v = 1.0 / (p * p * (SHAPE_STD**2 + noise**2 / weight[n]))
            if n:
                bb, bc, cc = bb + v, bc + v * n, cc + v * n * n
                yb, yc = yb + v * left, yc + v * n * left
            else:
                aa, ya = aa + v, ya + v * left
        # [aa -pull 0; -pull bb bc; 0 bc cc] [a b c] = [ya yb yc]
        bb, yb = bb - pull * pull / aa, yb + pull * ya / aa
        c = (yc - bc * yb / bb) / (cc - bc * bc / bb)
        b = (yb - bc * c) / bb
        a = (ya + pull * b) / aa
        first = max(shape[0] + a, 0.05)
        return _running_max([first, *(max(p + b + c * n, 0.5 * first) for n, p in enumerate(shape[1:], 1))], 1)


def _running_max(values: list[float], start: int) -> list[float]:
    most = values[start]
    for n in range(start, len(values)):
        most = values[n] = max(values[n], most)
    return values


def _interpolated(known: Mapping[int, float], size: int) -> list[float]:
    """Values at 0 to size - 1: at 0 its own, from 1 on linear between what is known, flat beyond."""
    out = [0.0] * size
    out[0] = known.get(0, 0.0)
    at = sorted(n for n in known if n)
    if not at:
        return out
    for n in range(1, size):
        after = next((k for k in at if k >= n), at[-1])
        before = next((k for k in reversed(at) if k <= n), at[0])
        share = (n - before) / (after - before) if after > before else 0.0
        out[n] = known[before] + share * (known[after] - known[before])
    return out


class _Noise:
    """Relative deviation of single steps, and runs of steps that are off on one side, plain and drafting apart."""

    def __init__(self) -> None:
        self.median = FIRST_NOISE / MEDIAN_TO_DEVIATION
        self.run, self.offsets, self.others = [0, 0], [0.0, 0.0], [0, 0]

    @property
    def deviation(self) -> float:
        return max(MEDIAN_TO_DEVIATION * self.median, LEAST_NOISE)

    def add(self, drafts: bool, offset: float) -> tuple[float, int] | None:
        """Adds log(seconds / predicted).

        At the end of a run, returns its mean offset and the number of steps of the other kind meanwhile.
        """
        limit = max(LEAST_OFFSET, 2.0 * self.deviation)
        moved = self.median * math.exp(NOISE_STEP if abs(offset) > self.median else -NOISE_STEP)
        self.median = min(max(moved, LEAST_NOISE / 2), 1.0)
        self.others[not drafts] += 1
        side = (offset > limit) - (offset < -limit)
        if not side:
            self.run[drafts] = 0
            return None
        if self.run[drafts] * side <= 0:
            self.run[drafts], self.offsets[drafts], self.others[drafts] = 0, 0.0, 0
        self.run[drafts] += side
        self.offsets[drafts] += offset
        if abs(self.run[drafts]) < RUN:
            return None
        self.run[drafts] = 0
        return self.offsets[drafts] / RUN, self.others[drafts]


@dataclass(slots=True)
class Evidence:
    """How many steps of a kind were timed, ever and with fading weight."""

    ever: float = 0.0
    weight: float = 0.0


class LiveTimes:
    """Seconds of a step for each number of drafted tokens, learned from steps; see the module.

    Attributes:
        step_s: Shape [gamma_max + 1]; before the first step in units of plain decoding. Replaced, not changed in place.
        plain, drafts, deep: Evidence on plain steps, on drafts, and on drafts of two tokens or more.
        num_changes: Lasting changes noticed so far.
    """

    def __init__(self, prior: TimesPrior) -> None:
        self.prior = prior
        self.step_s: Float64 = np.array(prior.step)
        self.plain, self.drafts, self.deep = Evidence(), Evidence(), Evidence()
        self.num_changes = 0
        self._noise = _Noise()
        self._times: _PassTimes | _WholeTimes | None = None
        self._held: list[list[tuple[TimedStep, bool]]] = [[], []]
        self._before_run: list[Float64 | None] = [None, None]
        self._waiting = 0  # samples since the last fit

    @property
    def noise(self) -> float:
        """Relative deviation of a single step."""
        return self._noise.deviation

    @property
    def draft_ratio(self) -> float:
        """One draft pass over one target pass; where passes are not timed apart, the growth of a step with a token."""
        if isinstance(self._times, _PassTimes) and (ratio := self._times.draft_ratio) is not None:
            return ratio
        last = min(RATIO_DEPTH, len(self.step_s) - 1)
        growth = (self.step_s[last] - self.step_s[1]) / max(last - 1, 1) if last > 1 else 0.0
        return float(max(growth, 1e-3 * self.step_s[0]) / self.step_s[0])

    def as_prior(self) -> TimesPrior:
        """The present estimate as the prior of a later session, on this machine or another."""
        steps = (self.step_s / self.step_s[0]).tolist()
        # Of a step only the sum is known: passes may take no more than leaves something for verification.
        draft = min(self.prior.draft, *(0.9 * step / n for n, step in enumerate(steps) if n))
        return TimesPrior(draft=draft, verify=(1.0, *(step - n * draft for n, step in enumerate(steps) if n)))

    @property
    def by_passes(self) -> bool:
        """Whether passes are timed apart."""
        return isinstance(self._times, _PassTimes)

    def observe(self, step: TimedStep) -> None:
        """Learns from a step; one whose time is not positive is ignored."""
        if not (math.isfinite(step.seconds) and step.seconds > 0):
            return
        self._choose_estimate(step)
        drafts = step.num_drafted > 0
        clean = not drafts or (not step.first_draft and step.lag <= MOST_LAG)
        # While a run is under way, steps are compared with what was predicted before it.
        before = self._before_run[drafts]
        predicted = self.step_s if before is None else before
        offset = math.log(step.seconds / float(predicted[step.num_drafted]))
        delayed = not clean and offset >= 0.0
        if delayed and not self.by_passes:
            return
        clip = max(CLIP, 4.0 * self.noise)
        assert self._times is not None
        # A length that was never drafted says nothing about a change.
        if delayed or self._times.weight(step.num_drafted) < WEIGHT_AFTER_CHANGE:
            self._take(step, clean, clip)
            return
        change = self._noise.add(drafts, offset)
        run = abs(self._noise.run[drafts])
        if change is not None:
            self._before_run[drafts] = None
            self._change(step, clean, *change)
            return
        if run <= 1:  # no run, or a new one: what an earlier run held back was chance
            for held, was_clean in self._held[drafts]:
                self._take(held, was_clean, clip)
            self._held[drafts] = []
            self._before_run[drafts] = self.step_s if run else None
        if run:
            self._held[drafts].append((step, clean))
        else:
            self._take(step, clean, clip)

    def _choose_estimate(self, step: TimedStep) -> None:
        if isinstance(self._times, _WholeTimes):
            return
        if not step.has_passes:
            prior = self.prior.step if self._times is None else self.step_s.tolist()
            self._times = _WholeTimes(prior)
            # What was seen of passes is known of whole steps only by the prior.
            self.plain, self.drafts, self.deep = Evidence(), Evidence(), Evidence()
        elif self._times is None:
            self._times = _PassTimes(self.prior)

    def _change(self, step: TimedStep, clean: bool, offset: float, others: int) -> None:
        assert self._times is not None
        self.num_changes += 1
        drafts = step.num_drafted > 0
        for kind in (drafts, not drafts):
            # The other kind has moved along, unless its own steps have shown otherwise.
            if kind == drafts or others < RUN:
                self._times.move(kind, offset)
                for evidence in (self.drafts, self.deep) if kind else (self.plain,):
                    evidence.ever = evidence.weight = 0.0
        for held, was_clean in (*self._held[drafts], (step, clean)):
            self._take(held, was_clean, NO_CLIP)
        self._held[drafts] = []

    def _take(self, step: TimedStep, clean: bool, clip: float) -> None:
        for evidence in (self.plain, self.drafts, self.deep):
            evidence.weight *= _FADE
        shown = [self.drafts, *([self.deep] if step.num_drafted > 1 else [])] if step.num_drafted else [self.plain]
        for evidence in shown:
            evidence.ever += 1.0
            evidence.weight += 1.0
        assert self._times is not None
        self._times.take(step, clean, clip)
        self._waiting += 1
        if self._waiting >= REFIT_EVERY or self._times.weight(step.num_drafted) < SURE_WEIGHT:
            self._waiting = 0
            self.step_s = np.array(self._times.fit(self.noise))


class _WholeTimes:
    """Estimate from whole steps."""

    def __init__(self, prior: Sequence[float]) -> None:
        self._curve = _Curve(prior, STEP_SLOPE_STD, rising=True)

    def weight(self, drafted: int) -> float:
        return self._curve.means.weight[drafted]

    def move(self, drafts: bool, offset: float) -> None:
        self._curve.move(drafts, offset)

    def take(self, step: TimedStep, clean: bool, clip: float) -> None:
        del clean
        self._curve.add(step.num_drafted, step.seconds, clip)

    def fit(self, noise: float) -> list[float]:
        self._curve.fit(noise)
        return self._curve.values


class _PassTimes:
    """Estimate from draft and verify passes."""

    def __init__(self, prior: TimesPrior) -> None:
        self._verify = _Curve(prior.verify, VERIFY_SLOPE_STD, rising=False)
        self._ratio = prior.draft
        self._passes = _Means(2)  # the first of a step, further ones
        self._both = range(2)

    def weight(self, drafted: int) -> float:
        return self._verify.means.weight[drafted]

    def move(self, drafts: bool, offset: float) -> None:
        self._verify.move(drafts, offset)
        if drafts:
            self._passes.move(self._both, offset)

    def take(self, step: TimedStep, clean: bool, clip: float) -> None:
        assert step.verify_s is not None
        self._verify.add(step.num_drafted, step.verify_s, clip)
        if step.num_drafted:
            self._take_drafts(step, clean, clip)

    def fit(self, noise: float) -> list[float]:
        self._verify.fit(noise)
        values = self._verify.values
        first, more = self._predicted() or (self._ratio * values[0],) * 2
        steps = [value + (first + (n - 1) * more if n else 0.0) for n, value in enumerate(values)]
        return _running_max(steps, 1)

    def _take_drafts(self, step: TimedStep, clean: bool, clip: float) -> None:
        assert step.first_draft_s is not None
        self._passes.age(self._both)
        predicted = self._predicted()
        if clean or (predicted is not None and step.first_draft_s < predicted[0]):
            self._passes.add(0, step.first_draft_s, predicted[0] if predicted else None, clip)
        further = step.num_drafted - 1
        if further:
            assert step.more_draft_s is not None
            self._passes.add(1, step.more_draft_s / further, predicted[1] if predicted else None, clip, further)

    @property
    def draft_ratio(self) -> float | None:
        """A further draft pass over a plain target pass; None before any was timed."""
        predicted = self._predicted()
        return None if predicted is None else predicted[1] / self._verify.values[0]

    def _predicted(self) -> tuple[float, float] | None:
        """Seconds of the first draft pass and of a further one: pooled, and apart as far as each is known."""
        weight, mean = self._passes.weight, self._passes.mean
        total = sum(weight)
        if not total:
            return None
        pooled = (weight[0] * mean[0] + weight[1] * mean[1]) / total
        first, more = (
            math.exp(pooled + weight[k] / (weight[k] + FIRST_PASS_WEIGHT) * (mean[k] - pooled)) for k in self._both
        )
        return first, more
