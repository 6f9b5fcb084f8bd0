# SPDX-License-Identifier: Apache-2.0
"""A request's past: how a decode step changes it, and the observation it gives.

`History` with `observe` serves many requests at once. `RequestMemory` is the single-request version on plain numbers,
equal to the last bit and much faster.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speckv.observation.features import (
    DRAFT_FEATURES,
    DRAFT_HIGH,
    DRAFT_LOW,
    FIRST_DRAFT,
    FIRST_TESTED,
    NO_DRAFT,
    PAST_FEATURES,
    PRIOR_ACCEPTANCE,
    SCHEMA,
    STOPPING_SCHEMA,
    TESTED_FEATURES,
    DraftPrefix,
    summarise_tested,
)
from speckv.types import BITS_PER_WEIGHT, NUM_SIGNALS, BoolArray, FloatArray, IntArray, StepOutcome

DECAY = 0.9
"""Weight that the averages keep at each step."""

PRIOR_ACCEPTED = PRIOR_ACCEPTANCE / (1.0 - PRIOR_ACCEPTANCE)
"""Accepted length, in tokens, that an unlimited draft has on average at the prior acceptance."""

_TESTED_AT = tuple(SCHEMA.index(name) for name in TESTED_FEATURES)
_TESTED_VALUES = tuple(source.value for source in TESTED_FEATURES.values())
_PAST_VALUES = tuple((SCHEMA.index(name), source.value) for name, source in PAST_FEATURES.items())
_DRAFT_VALUES = tuple(source.value for source in DRAFT_FEATURES.values())
_LOW, _HIGH = SCHEMA.low, SCHEMA.high


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticContext:
    """What does not change while a request runs; arrays of shape [N]. The budget includes the prefill's token."""

    cost_ratio: NDArray[np.float64]
    bits_per_weight: NDArray[np.float64]
    budget: IntArray

    @staticmethod
    def of(compressions: Sequence[str], cost_ratios: Mapping[str, float], budgets: Sequence[int]) -> "StaticContext":
        """From one compression and one budget a request, and the cost ratio of each compression."""
        return StaticContext(
            cost_ratio=np.array([cost_ratios[name] for name in compressions], np.float64),
            bits_per_weight=np.array([BITS_PER_WEIGHT[name] for name in compressions], np.float64),
            budget=np.array(budgets, np.int64),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """What one decode step of each request did, as far as observations need it; arrays of N rows.

    Attributes:
        tested: Shape [N, `TESTED_FEATURES`]; `summarise_tested` of the step; ignored where nothing was drafted.
        target: Shape [N, 2]; the target's entropy and confidence at the newest emitted token.
    """

    num_drafted: IntArray
    num_accepted: IntArray
    num_emitted: IntArray
    tested: FloatArray
    target: FloatArray

    @property
    def num_tested(self) -> IntArray:
        """Shape [N]; the accepted tokens and the first rejected one."""
        return np.minimum(self.num_accepted + 1, self.num_drafted)

    @staticmethod
    def from_outcome(outcome: StepOutcome) -> "StepBatch":
        """The step of one live request."""
        signals = np.asarray(outcome.draft_signals, np.float32)
        return StepBatch(
            num_drafted=np.array([outcome.num_drafted]),
            num_accepted=np.array([outcome.num_accepted]),
            num_emitted=np.array([outcome.num_emitted]),
            tested=summarise_tested(signals, outcome.num_tested)[np.newaxis],
            target=np.array([[outcome.target_entropy, outcome.target_confidence]], np.float32),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The past of many requests; arrays of one row a request.

    Attributes:
        tested: Shape [N, `TESTED_FEATURES`]; of the last drafting step.
        target: Shape [N, 2]; the target's entropy and confidence at the newest emitted token.
        accepted_fraction: Accepted over drafted in the last drafting step.
        decayed_accepted, decayed_tested: Tokens, decayed at every step.
        accepted_ema: Mean accepted length of drafting steps, in tokens.
        draft_lag: Emitted tokens missing from the draft's cache, the newest one not counted.
    """

    tested: FloatArray
    target: FloatArray
    accepted_fraction: NDArray[np.float64]
    previous_drafted: IntArray
    decayed_accepted: NDArray[np.float64]
    decayed_tested: NDArray[np.float64]
    accepted_ema: NDArray[np.float64]
    emitted: IntArray
    draft_lag: IntArray

    @property
    def target_entropy(self) -> FloatArray:
        """Shape [N]; in nats."""
        return self.target[:, 0]

    @property
    def target_confidence(self) -> FloatArray:
        """Shape [N]."""
        return self.target[:, 1]

    @staticmethod
    def start(n: int, target_entropy: ArrayLike, target_confidence: ArrayLike) -> "History":
        """The past of `n` requests after their prefill, which emitted one token each; signals may be scalars."""
        history = History(
            tested=np.empty((n, len(TESTED_FEATURES)), np.float32),
            target=np.empty((n, 2), np.float32),
            accepted_fraction=np.empty(n),
            previous_drafted=np.empty(n, np.int64),
            decayed_accepted=np.empty(n),
            decayed_tested=np.empty(n),
            accepted_ema=np.empty(n),
            emitted=np.empty(n, np.int64),
            draft_lag=np.empty(n, np.int64),
        )
        target = np.empty((n, 2), np.float32)
        target[:, 0], target[:, 1] = target_entropy, target_confidence
        history.restart(slice(None), target)
        return history

    def restart(self, rows: IntArray | slice, target: FloatArray) -> None:
        """Starts another request in some rows, in place; `target` has shape [rows, 2]."""
        self.tested[rows] = FIRST_TESTED
        self.target[rows] = target
        self.accepted_fraction[rows] = PRIOR_ACCEPTANCE
        self.previous_drafted[rows] = 0
        self.decayed_accepted[rows] = 0.0
        self.decayed_tested[rows] = 0.0
        self.accepted_ema[rows] = PRIOR_ACCEPTED
        self.emitted[rows] = 1
        self.draft_lag[rows] = 0


def observe(history: History, static: StaticContext) -> FloatArray:
    """The features of `SCHEMA` for each request, of shape [N, features] and within the schema's bounds."""
    out = np.empty((len(history.emitted), SCHEMA.size), np.float32)
    for column, position in enumerate(_TESTED_AT):
        out[:, position] = history.tested[:, column]
    for position, value in _PAST_VALUES:
        out[:, position] = value(history, static)
    return np.minimum(np.maximum(out, _LOW, out=out), _HIGH, out=out)


def update_history(history: History, outcome: StepBatch, where: BoolArray | None = None) -> History:
    """The past after one decode step of each request, in new arrays; rows outside the mask `where` are unchanged.

    >>> step = StepBatch(
    ...     num_drafted=np.array([4]), num_accepted=np.array([3]), num_emitted=np.array([4]),
    ...     tested=np.zeros((1, 6), np.float32), target=np.zeros((1, 2), np.float32),
    ... )
    >>> after = update_history(History.start(1, 0.0, 1.0), step)
    >>> int(after.emitted[0]), float(after.accepted_fraction[0])
    (5, 0.75)
    """
    drafted, accepted = outcome.num_drafted, outcome.num_accepted
    drafting = drafted > 0
    decayed_accepted = history.decayed_accepted * DECAY
    decayed_accepted += accepted
    decayed_tested = history.decayed_tested * DECAY
    decayed_tested += outcome.num_tested
    after = History(
        tested=np.where(drafting[:, None], outcome.tested, history.tested),
        target=np.array(outcome.target, np.float32),
        accepted_fraction=np.where(drafting, accepted / np.maximum(drafted, 1), history.accepted_fraction),
        previous_drafted=np.array(drafted, np.int64),
        decayed_accepted=decayed_accepted,
        decayed_tested=decayed_tested,
        accepted_ema=history.accepted_ema + ((1.0 - DECAY) * drafting) * (accepted - history.accepted_ema),
        emitted=history.emitted + outcome.num_emitted,
        # A fully accepted draft leaves its last token unread; without drafting the lag grows by one token.
        draft_lag=np.where(drafting, accepted == drafted, history.draft_lag + 1),
    )
    if where is None:
        return after
    chosen = {}
    for f in fields(History):
        new, old = getattr(after, f.name), getattr(history, f.name)
        chosen[f.name] = np.where(where[:, None] if new.ndim == 2 else where, new, old)
    return History(**chosen)


class RequestMemory:
    """The past of one request and its observation; arguments as for `StaticContext`.

    Attributes:
        before: Shape [features]; what `observe` gives, as of the last `render`.
        inside: What `observe_draft` gives, as of the last `render` and `add_draft`; begins with `before`.
        drafted: Entropy, confidence and margin of the tokens drafted since `render`, rounded to float32.
    """

    def __init__(self, *, cost_ratio: float, bits_per_weight: float, budget: int) -> None:
        self.cost_ratio, self.bits_per_weight, self.budget = cost_ratio, bits_per_weight, budget
        self.inside: FloatArray = np.zeros(STOPPING_SCHEMA.size, np.float32)
        self.before: FloatArray = self.inside[: SCHEMA.size]
        self._draft: FloatArray = self.inside[SCHEMA.size :]
        self._row = [0.0] * SCHEMA.size
        self._signals = np.zeros(NUM_SIGNALS, np.float32)
        self.drafted: list[Sequence[float]] = []
        self._prefixes: list[DraftPrefix] = []
        self.start(0.0, 1.0)

    def start(self, target_entropy: float, target_confidence: float) -> None:
        """Begins right after the prefill, which emitted one token; see `History.start`."""
        self._remember_tested(FIRST_TESTED.tolist())
        self.target_entropy, self.target_confidence = target_entropy, target_confidence
        self.accepted_fraction, self.previous_drafted = PRIOR_ACCEPTANCE, 0
        self.decayed_accepted = self.decayed_tested = 0.0
        self.accepted_ema = PRIOR_ACCEPTED
        self.emitted, self.draft_lag = 1, 0
        self._forget_draft()

    @property
    def tokens_left(self) -> int:
        """Tokens left in the budget."""
        return self.budget - self.emitted

    def render(self) -> FloatArray:
        """Writes the observation before a step, with nothing drafted yet, and returns `before`."""
        row, out = self._row, self.before
        for position, value in _PAST_VALUES:
            row[position] = value(self, self)
        out[:] = row
        np.maximum(out, _LOW, out=out)
        np.minimum(out, _HIGH, out=out)
        self._draft[:] = FIRST_DRAFT
        self._forget_draft()
        return out

    def add_draft(self, entropy: float, confidence: float, margin: float) -> FloatArray:
        """Adds one drafted token's signals and returns `inside`."""
        signals, prefixes, out = self._signals, self._prefixes, self._draft
        signals[:] = entropy, confidence, margin
        token = signals.tolist()
        prefix = (prefixes[-1] if prefixes else NO_DRAFT).extended(token)
        self.drafted.append(token)
        prefixes.append(prefix)
        out[:] = [value(prefix) for value in _DRAFT_VALUES]
        np.maximum(out, DRAFT_LOW, out=out)
        np.minimum(out, DRAFT_HIGH, out=out)
        return self.inside

    def end_step(
        self,
        *,
        num_drafted: int,
        num_accepted: int,
        num_emitted: int,
        target_entropy: float,
        target_confidence: float,
    ) -> None:
        """Adds one decode step to the past; the draft's signals are those of `add_draft`."""
        num_tested = min(num_accepted + 1, num_drafted)
        if num_drafted:
            tested = self._prefixes[:num_tested]
            self._remember_tested([value(tested[-1]) for value in _TESTED_VALUES] if tested else FIRST_TESTED.tolist())
            self.accepted_fraction = num_accepted / num_drafted
            self.accepted_ema = self.accepted_ema + (1.0 - DECAY) * (num_accepted - self.accepted_ema)
            self.draft_lag = int(num_accepted == num_drafted)
        else:
            # A draft that ran and was dropped has read the newest token; one that did not run fell behind.
            self.draft_lag = 0 if self._prefixes else self.draft_lag + 1
        self.target_entropy, self.target_confidence = target_entropy, target_confidence
        self.previous_drafted = num_drafted
        self.decayed_accepted = self.decayed_accepted * DECAY + num_accepted
        self.decayed_tested = self.decayed_tested * DECAY + num_tested
        self.emitted += num_emitted

    def _remember_tested(self, values: Sequence[float]) -> None:
        for position, value in zip(_TESTED_AT, values, strict=True):
            self._row[position] = value

    def _forget_draft(self) -> None:
        self.drafted.clear()
        self._prefixes.clear()
