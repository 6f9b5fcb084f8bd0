# SPDX-License-Identifier: Apache-2.0
"""What is remembered of each request's past, and how a step changes it."""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speckv.observation.step import NEUTRAL_SUMMARY, StepBatch
from speckv.types import FloatArray, IntArray

BoolArray = NDArray[np.bool_]

DECAY = 0.9
"""Weight that the averages keep at each step."""

PRIOR_ACCEPTANCE = 0.7
"""Acceptance rate that a request is taken to have before its first step."""

PRIOR_TOKENS = 4.0
"""Tokens, accepted at that rate, that the acceptance average always includes: old evidence fades towards the prior."""

PRIOR_ACCEPTED = PRIOR_ACCEPTANCE / (1.0 - PRIOR_ACCEPTANCE)
"""Accepted length, in tokens, that an unlimited draft has on average at the prior acceptance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What is remembered of each request's past; arrays of one row a request.

    Attributes:
        tested: Shape [N, 6]; `TESTED_SUMMARY` of the last drafting step.
        target: Shape [N, 2]; the target's entropy and confidence at the newest emitted token.
        accepted_fraction: Shape [N]; accepted over drafted in the last drafting step.
        previous_drafted: Shape [N]; tokens drafted in the previous step.
        decayed_accepted: Shape [N]; accepted tokens, decayed at every step.
        decayed_tested: Shape [N]; tested tokens, decayed at every step.
        accepted_ema: Shape [N]; mean accepted length of drafting steps, in tokens.
        emitted: Shape [N]; tokens of the output so far.
        draft_lag: Shape [N]; emitted tokens missing from the draft's cache, the newest one not counted.
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

    @staticmethod
    def start(n: int, target_entropy: ArrayLike, target_confidence: ArrayLike) -> "History":
        """The past of `n` requests right after their prefill, which emitted one token each.

        Args:
            n: Number of requests.
            target_entropy: Of the distribution that the first token came from; one number, or one a request.
            target_confidence: Its top-1 probability.
        """
        target = np.empty((n, 2), np.float32)
        target[:, 0], target[:, 1] = target_entropy, target_confidence
        return History(
            tested=np.tile(NEUTRAL_SUMMARY, (n, 1)),
            target=target,
            accepted_fraction=np.full(n, PRIOR_ACCEPTANCE),
            previous_drafted=np.zeros(n, np.int64),
            decayed_accepted=np.zeros(n),
            decayed_tested=np.zeros(n),
            accepted_ema=np.full(n, PRIOR_ACCEPTED),
            emitted=np.ones(n, np.int64),
            draft_lag=np.zeros(n, np.int64),
        )

    def restart(self, rows: IntArray, target: FloatArray) -> None:
        """Lets some rows forget their past, in place, and start another request.

        Args:
            rows: Indices of the rows.
            target: Shape [rows, 2]; the target's entropy and confidence at each first token.
        """
        self.tested[rows] = NEUTRAL_SUMMARY
        self.target[rows] = target
        self.accepted_fraction[rows] = PRIOR_ACCEPTANCE
        self.previous_drafted[rows] = 0
        self.decayed_accepted[rows] = 0.0
        self.decayed_tested[rows] = 0.0
        self.accepted_ema[rows] = PRIOR_ACCEPTED
        self.emitted[rows] = 1
        self.draft_lag[rows] = 0


def next_draft_lag(draft_lag: IntArray, num_drafted: IntArray, num_accepted: IntArray) -> IntArray:
    """Emitted tokens that the draft's cache misses after a step, the newest one not counted.

    A fully accepted draft leaves its last token unread; a rejected one leaves nothing; without drafting the draft reads
    nothing and falls one token further behind.

    >>> next_draft_lag(np.array([0, 0, 5, 5]), np.array([0, 3, 3, 0]), np.array([0, 3, 1, 0])).tolist()
    [1, 1, 0, 6]
    """
    return np.where(num_drafted > 0, num_accepted == num_drafted, draft_lag + 1)


def update_history(history: History, outcome: StepBatch, where: BoolArray | None = None) -> History:
    """Takes one decode step of each request into the past.

    Args:
        history: The past before the step; left as it is.
        outcome: What the step did.
        where: Shape [N]; rows that made a step, all if None. The others keep their past.

    Returns:
        The past after the step, in arrays of its own.

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
        draft_lag=next_draft_lag(history.draft_lag, drafted, accepted),
    )
    return after if where is None else _choose(where, after, history)


def _choose(where: BoolArray, after: History, before: History) -> History:
    chosen = {}
    for f in fields(History):
        new, old = getattr(after, f.name), getattr(before, f.name)
        chosen[f.name] = np.where(where[:, None] if new.ndim == 2 else where, new, old)
    return History(**chosen)
