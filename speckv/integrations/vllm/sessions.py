# SPDX-License-Identifier: Apache-2.0
"""Settings, a session for each running request, and one gamma for a batch; independent of vLLM."""

import os
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from speckv.errors import ConfigError, nearest
from speckv.integrations.environment import named_policy
from speckv.runtime import Policy, Session

COMPRESSION = "SPECKV_COMPRESSION"
COMBINE = "SPECKV_COMBINE"
PER_REQUEST = "SPECKV_PER_REQUEST"
SIGNALS = "SPECKV_SIGNALS"

COMBINATIONS: Mapping[str, Callable[[Sequence[int]], int]] = {
    "median": statistics.median_low,
    "mean": lambda gammas: (2 * sum(gammas) + len(gammas)) // (2 * len(gammas)),
    "min": min,
    "max": max,
}
"""Combines the gammas of a batch: lower median, mean rounded half up, minimum, maximum."""

_in_process: list[Policy] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSettings:
    """Settings from environment variables, as vLLM builds its classes itself (docs/integrations/vllm.md)."""

    policy: Policy
    compression: str | None = None
    combine: str = "median"
    per_request: bool = False
    signals: bool = False

    @staticmethod
    def read(environment: Mapping[str, str] | None = None) -> "EnvironmentSettings":
        """ConfigError if no policy is named or a value is invalid; CheckpointError if it is unusable."""
        env = os.environ if environment is None else environment
        combine = env.get(COMBINE, "median")
        if combine not in COMBINATIONS:
            raise ConfigError(
                f"Expected {COMBINE} in {sorted(COMBINATIONS)}, got {combine!r}.{nearest(combine, [*COMBINATIONS])}"
            )
        return EnvironmentSettings(
            policy=_in_process[-1] if _in_process else named_policy(env),
            compression=env.get(COMPRESSION) or None,
            combine=combine,
            per_request=_switch(env, PER_REQUEST),
            signals=_switch(env, SIGNALS),
        )


@contextmanager
def use(policy: Policy) -> Iterator[Policy]:
    """Replaces SPECKV_POLICY's policy for engines in this process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`)."""
    _in_process.append(policy)
    try:
        yield policy
    finally:
        _in_process.pop()


def _switch(environment: Mapping[str, str], name: str) -> bool:
    word = environment.get(name, "0")
    if word not in ("0", "1"):
        raise ConfigError(f"Expected {name} to be 0 or 1, got {word!r}.")
    return word == "1"


TokenSignals = Sequence[float]
"""Entropy (nats), confidence and margin of the draft at one token."""
_UNKNOWN: TokenSignals = (float("nan"),) * 3


def require_turns(policy: Policy, num_requests: int) -> None:
    """Refuses several requests for a policy that learns and cannot separate their steps."""
    if num_requests > 1 and not policy.interleaves:
        raise ConfigError(
            f"Expected max_num_seqs=1 for {policy.name!r}, which learns and has neither save_request nor load_request "
            f"for requests that interleave, got {num_requests}. Or export it with --frozen."
        )


class Budget(NamedTuple):
    """Token budget of a request's output; not `requested` if it is a bound of the engine."""

    tokens: int
    requested: bool = True


class RequestSessions:
    """Sessions of the requests that a scheduler runs, with at most `most` drafted tokens a step.

    For the batch, `decide` is called before each pass, while the last outcome is not known yet. For each request, `cut`
    is called after each pass.
    """

    def __init__(
        self,
        settings: EnvironmentSettings,
        *,
        most: int,
        vocab_size: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.settings, self.most = settings, min(most, settings.policy.gamma_max)
        self._vocab_size = vocab_size
        self._combine = COMBINATIONS[settings.combine]
        self._hidden = {"target"} if settings.signals else {"target", "draft"}
        self._sessions: dict[str, Session] = {}
        self._drafted: dict[str, Sequence[TokenSignals]] = {}
        self._clock = clock
        self._planned: float | None = None
        self._pass_s: float | None = None

    def __len__(self) -> int:
        """Number of open requests."""
        return len(self._sessions)

    def session(self, request: str, budget: Budget) -> Session:
        """The session of a request, opened at the first call."""
        if (known := self._sessions.get(request)) is not None:
            return known
        settings = self.settings
        opened = settings.policy.session(
            max_new_tokens=budget.tokens,
            compression=settings.compression,
            vocab_size=self._vocab_size,
            hidden=self._hidden if budget.requested else {*self._hidden, "budget"},
            passes=False,
        )
        opened.start()
        self._sessions[request] = opened
        return opened

    def decide(self, requests: Iterable[tuple[str, Budget]]) -> int:
        """One gamma for the requests that will draft; 0 for none."""
        now = self._clock()
        # From plan to plan, as the next pass may be planned before this one has ended.
        self._pass_s, self._planned = None if self._planned is None else now - self._planned, now
        gammas = [self.session(*request).begin_step() for request in requests]
        return min(self._combine(gammas), self.most) if gammas else 0

    def store_signals(self, request: str, signals: Sequence[TokenSignals]) -> None:
        """Stores the newest draft's signals for `end` or `cut`."""
        self._drafted[request] = signals

    def cut(self, request: str, budget: Budget, num_drafted: int) -> int:
        """How many drafted tokens are verified: up to and including the first after which the policy stops."""
        session = self.session(request, budget)
        gamma = min(session.begin_step(), num_drafted)
        for number, signals in enumerate(self._take_signals(request, gamma), start=1):
            if not session.go_on(*signals):
                return number
        return gamma

    def end(self, request: str, *, num_drafted: int, num_accepted: int, num_emitted: int) -> None:
        """Records a pass; ignored for a request that is not open."""
        if (session := self._sessions.get(request)) is None:
            return
        if not self.settings.per_request and self.settings.signals:
            # The next step has begun already; the history keeps tested tokens only.
            for signals in self._take_signals(request, num_drafted):
                session.go_on(*signals)
        session.end_step(num_accepted, num_drafted=num_drafted, num_emitted=num_emitted, seconds=self._pass_s)

    def _take_signals(self, request: str, length: int) -> list[TokenSignals]:
        stored = self._drafted.pop(request, ())
        return [*stored, *[_UNKNOWN] * length][:length]

    def keep(self, running: Collection[str]) -> None:
        """Closes every other request."""
        for request in [name for name in self._sessions if name not in running]:
            del self._sessions[request]
            self._drafted.pop(request, None)
