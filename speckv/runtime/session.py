# SPDX-License-Identifier: Apache-2.0
"""Sessions: a policy decides for one request in a foreign decode loop. No call of a session raises."""

import copy
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np

from speckv.observation import GROUPS, SCHEMA, RequestMemory
from speckv.types import (
    NUM_SIGNALS,
    BoolArray,
    Controller,
    FloatArray,
    IntArray,
    InterleavedLearner,
    StepOutcome,
    StoppingController,
)

logger = logging.getLogger(__name__)

HIDDEN = ("target", "draft", "budget")
"""What a library may not show: the signals of either model, or the token budget."""
_NAN = math.nan
_MOST_NATS = 64.0
"""No vocabulary is large enough for such an entropy."""
_SLACK = 1e-3
"""Rounding may carry a probability this far over 1."""
_FEATURES = {"target": GROUPS["target"], "draft": GROUPS["past_signals"], "budget": ("position", "tokens_left")}
_SURE = (0.0, 1.0, 1.0)
"""Stands for signals that are unknown."""


class Session:
    """Decides for one request; made by `Policy.session`.

    Call `start` once, then for every decode step `begin_step`, `go_on` after each drafted token, and `end_step`.
    Decisions that depend on an impossible value become the fallback gamma, and `warnings` counts them by reason.

    Args:
        max_new_tokens: Token budget, the prefill's token included; where the budget is hidden, an upper bound.
        hidden: Some of `HIDDEN`; `typical` stands for their features.
        refuse: A reason for the fallback at every decision, such as another vocabulary.
        passes: Whether `go_on` and `end_step` are called right after each draft pass and the verification, so that
            these can be timed apart; else only whole steps are.
        clock: Seconds.
    """

    def __init__(
        self,
        controller: Controller,
        *,
        max_new_tokens: int,
        cost_ratio: float,
        bits_per_weight: float,
        gamma_max: int,
        fallback: int,
        warnings: Counter[str],
        hidden: Collection[str] = (),
        typical: FloatArray | None = None,
        refuse: str | None = None,
        passes: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._controller, self._passes, self._clock = controller, passes, clock
        self._stops = isinstance(controller, StoppingController)
        self._memory = RequestMemory(
            cost_ratio=cost_ratio, bits_per_weight=bits_per_weight, budget=max(max_new_tokens, 1)
        )
        self._gamma_max, self._fallback, self._warnings = gamma_max, fallback, warnings
        self._target_hidden, self._draft_hidden = ("target" in hidden), ("draft" in hidden)
        self._columns = np.array([SCHEMA.index(feature) for name in hidden for feature in _FEATURES[name]], np.int64)
        self._typical = None if typical is None else typical[self._columns]
        # Reasons for the fallback: in all steps, in this one, and in the next one.
        self._refuse = self._doubt = refuse
        self._carried: str | None = None
        if refuse is not None:
            self._count(refuse)
        self._decided = False
        self._gamma = 0
        # When the step began, and its first and newest token were drafted.
        self._began = self._first = self._newest = clock()
        controller.reset()

    @property
    def tokens_left(self) -> int:
        """Tokens left in the budget, or below the bound in its place."""
        return self._memory.tokens_left

    def start(self, target_entropy: float = _NAN, target_confidence: float = _NAN) -> None:
        """Begins the request, right after the prefill emitted its token."""
        self._doubt, self._carried = self._refuse, None
        self._controller.reset()
        self._memory.start(*self._target(target_entropy, target_confidence))
        self._decided = False

    def begin_step(self) -> int:
        """Returns how many tokens to draft at most: 0 to what is left of the budget, one token less."""
        memory = self._memory
        observation = memory.render()
        self._decided = False
        gamma = self._fallback
        if self._doubt is None:
            if len(self._columns):
                observation[self._columns] = self._typical
            try:
                gamma = int(self._controller.act(observation))
                self._decided = True
            except Exception as error:  # whatever a policy does, the text goes on
                self._failed(error)
            if self._decided and self._stops and self._draft_hidden:
                # No signals will come: the length that is best by what is known before the step.
                gamma = min(gamma, int(getattr(self._controller, "gamma_ahead", self._fallback)))
        self._gamma = max(0, min(gamma, self._gamma_max, memory.tokens_left - 1))
        self._began = self._clock()
        return self._gamma

    def go_on(self, entropy: float = _NAN, confidence: float = _NAN, margin: float = _NAN) -> bool:
        """Records a drafted token, which stays in the draft, and returns whether to draft another."""
        memory, self._newest = self._memory, self._clock()
        if not memory.drafted:
            self._first = self._newest
        possible = _possible(entropy, confidence) and -_SLACK <= margin <= 1 + _SLACK
        if not possible:
            entropy, confidence, margin = _SURE
            if not self._draft_hidden:
                # The next step is decided on it, too.
                self._carried = self._distrust("a signal of the draft that cannot be")
        inside = memory.add_draft(entropy, confidence, margin)
        drafted = len(memory.drafted)
        if drafted >= self._gamma:
            return False
        if not self._stops:
            return True
        if self._draft_hidden and self._decided:
            return True
        if self._doubt is not None or not self._decided:
            return drafted < self._fallback
        try:
            return bool(cast(StoppingController, self._controller).go_on(inside))
        except Exception as error:  # as above
            self._failed(error)
            return drafted < self._fallback

    def end_step(
        self,
        num_accepted: int,
        target_entropy: float = _NAN,
        target_confidence: float = _NAN,
        *,
        num_drafted: int | None = None,
        num_emitted: int | None = None,
        seconds: float | None = None,
        draft_s: float | None = None,
        first_draft_s: float | None = None,
        verify_s: float | None = None,
    ) -> None:
        """Records the outcome of a step.

        Times that are not given are those of the session's clock. A loop on an asynchronous device should give them,
        from events of the device, where it does not wait for the device anyway.

        Args:
            target_entropy: At the newest emitted token, in nats; ignored if the target's signals are hidden.
            num_drafted: Tokens verified; by default the calls of `go_on`. A loop may verify fewer; from a step whose
                whole draft it drops, the controller learns nothing.
            num_emitted: Tokens added to the output; by default one more than were accepted.
            seconds: Of the step, if its passes are not known; by default their sum, or the time since `begin_step`.
            draft_s: Of all draft passes.
            first_draft_s: Of the first one; by default their mean.
            verify_s: Of the target's pass. To be given where other work is done before `end_step` is called.
        """
        memory, now = self._memory, self._clock()
        drafted = len(memory.drafted) if num_drafted is None else int(num_drafted)
        # The clock tells passes apart where as many tokens were verified as were drafted.
        if seconds is None and self._passes and drafted == len(memory.drafted):
            if draft_s is None:
                draft_s, first_draft_s = (t - self._began if drafted else 0.0 for t in (self._newest, self._first))
            verify_s = now - self._began - draft_s if verify_s is None else verify_s
        if seconds is None and verify_s is not None:
            seconds = (draft_s or 0.0) + verify_s
        elapsed = now - self._began if seconds is None else seconds
        if not (math.isfinite(elapsed) and elapsed > 0):
            self._count("a step's time that cannot be")
            elapsed, verify_s = max(now - self._began, 1e-9), None
        draft_s, first_draft_s, verify_s = _passes(drafted, draft_s, first_draft_s, verify_s)
        if not 0 <= num_accepted <= drafted:
            self._count("a step's counts that cannot be")
            drafted = max(drafted, 0)
            num_accepted = max(0, min(num_accepted, drafted))
        emitted = num_accepted + 1 if num_emitted is None else int(num_emitted)
        self._doubt, self._carried = self._refuse or self._carried, None
        entropy, confidence = self._target(target_entropy, target_confidence)
        dropped = bool(memory.drafted) and drafted == 0
        shown = [*memory.drafted[:drafted], *[_SURE] * (drafted - len(memory.drafted))]
        memory.end_step(
            num_drafted=drafted,
            num_accepted=num_accepted,
            num_emitted=emitted,
            target_entropy=entropy,
            target_confidence=confidence,
        )
        if self._decided and not dropped:
            self._learn(
                StepOutcome(
                    gamma=drafted if self._stops else self._gamma,
                    num_drafted=drafted,
                    num_accepted=num_accepted,
                    num_tested=min(num_accepted + 1, drafted),
                    num_emitted=emitted,
                    draft_signals=np.array(shown, np.float32).reshape(-1, NUM_SIGNALS),
                    target_entropy=entropy,
                    target_confidence=confidence,
                    seconds=elapsed,
                    draft_s=draft_s,
                    first_draft_s=first_draft_s,
                    verify_s=verify_s,
                )
            )
        self._decided = False

    def _learn(self, outcome: StepOutcome) -> None:
        try:
            self._controller.learn(outcome)
        except Exception as error:  # as in `begin_step`
            self._failed(error)

    def _target(self, entropy: float, confidence: float) -> tuple[float, float]:
        if _possible(entropy, confidence):
            return entropy, confidence
        if not self._target_hidden:
            self._distrust("a signal of the target that cannot be")
        return 0.0, 1.0

    def _distrust(self, reason: str) -> str:
        self._count(reason)
        self._doubt = reason
        return reason

    def _failed(self, error: Exception) -> None:
        self._count(f"the controller failed ({type(error).__name__}: {error})")

    def _count(self, reason: str) -> None:
        if not self._warnings[reason]:
            logger.warning("Fallback gamma %d: %s. Further ones are counted, not shown.", self._fallback, reason)
        self._warnings[reason] += 1


def _passes(
    drafted: int, draft_s: float | None, first_s: float | None, verify_s: float | None
) -> tuple[float, float, float]:
    """Times of all draft passes, of the first, and of the rest; zeros if one is missing or cannot be."""
    draft_s = 0.0 if draft_s is None and not drafted else draft_s
    if draft_s is None or verify_s is None:
        return 0.0, 0.0, 0.0
    first_s = draft_s / max(drafted, 1) if first_s is None else first_s
    if not 0.0 <= first_s <= draft_s < math.inf or not 0.0 < verify_s < math.inf:
        return 0.0, 0.0, 0.0
    return draft_s, first_s, verify_s


def _possible(entropy: float, confidence: float) -> bool:
    # NaN is within no bounds.
    return -_SLACK <= entropy <= _MOST_NATS and -_SLACK <= confidence <= 1 + _SLACK


def shared(learner: Controller) -> Controller:
    """Returns one request's view of a shared learner, or the learner itself if its requests cannot interleave."""
    if not isinstance(learner, InterleavedLearner):
        return learner
    return SharedStoppingSession(learner) if isinstance(learner, StoppingController) else SharedLearnerSession(learner)


_LOCKS: WeakKeyDictionary[object, threading.RLock] = WeakKeyDictionary()
_LOCKING = threading.Lock()


def _lock_of(learner: object) -> threading.RLock:
    """The lock of a learner, for all its sessions."""
    with _LOCKING:
        return _LOCKS.setdefault(learner, threading.RLock())


class SharedLearnerSession:
    """One request's view of a shared learner; the request's state is loaded and saved around each call.

    Threads take turns, so that each call is whole.
    """

    def __init__(self, learner: InterleavedLearner) -> None:
        self.name, self.charges_decision = learner.name, learner.charges_decision
        self._learner, self._lock = learner, _lock_of(learner)
        # Of another request until `reset`; a copy, so that neither changes the other's.
        with self._lock:
            self._request = copy.deepcopy(learner.save_request())

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._lock:
            self._learner.load_request(self._request)
            try:
                yield
            finally:
                self._request = self._learner.save_request()

    def reset(self) -> None:
        """Begins the request."""
        with self._turn():
            self._learner.reset()

    def act(self, observation: FloatArray) -> int:
        """Returns the learner's gamma."""
        with self._turn():
            return self._learner.act(observation)

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the learner's gamma for each row, as if all were this request's."""
        with self._turn():
            return self._learner.act_batch(observations)

    def learn(self, outcome: StepOutcome) -> None:
        """Learns from the outcome of this request's last choice."""
        with self._turn():
            self._learner.learn(outcome)


class SharedStoppingSession(SharedLearnerSession):
    """The same of a learner that also decides inside steps."""

    _learner: Any

    @property
    def gamma_ahead(self) -> int:
        """As of the learner, where it has one."""
        with self._turn():
            return int(self._learner.gamma_ahead)

    def go_on(self, observation: FloatArray) -> bool:
        """Returns whether to draft another token."""
        with self._turn():
            return bool(self._learner.go_on(observation))

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """Returns the same for each row, as if all were this request's."""
        with self._turn():
            chosen: BoolArray = self._learner.go_on_batch(observations)
            return chosen
