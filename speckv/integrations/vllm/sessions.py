# SPDX-License-Identifier: Apache-2.0
"""One session for each running request, and one gamma for all of them. Knows nothing of vLLM."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from speckv.errors import ConfigError
from speckv.integrations.vllm.settings import COMBINATIONS, Settings
from speckv.runtime import Policy, Session

TokenSignals = Sequence[float]
"""Entropy (nats), confidence and margin of the draft at one token."""
_UNKNOWN: TokenSignals = (float("nan"),) * 3


def require_turns(policy: Policy, num_requests: int) -> None:
    """Passes if so many requests can be decoded together under a policy.

    Raises:
        ConfigError: if it goes on learning and cannot tell one request's steps from another's.
    """
    if num_requests > 1 and not policy.interleaves:
        raise ConfigError(
            f"Expected max_num_seqs=1 for {policy.name!r}, which learns and has neither save_request nor load_request "
            f"for requests that interleave, got {num_requests}. Or export it with --frozen."
        )


class Budget(NamedTuple):
    """Where a request's text has to end.

    Attributes:
        tokens: Of its output.
        told: Whether somebody asked for that; otherwise it is a bound of the engine's.
    """

    tokens: int
    told: bool = True


class RequestSessions:
    """The requests that a scheduler runs, each with what the policy remembers of it.

    Two ways to decide. For the batch: `decide` before each pass; what the pass before it came to is then still
    unknown, and `end` follows. For each request: `cut` behind each pass, when everything is known.

    Args:
        settings: Policy and ways.
        most: Tokens that the engine can draft in a step.
        vocab_size: Of the target.
    """

    def __init__(self, settings: Settings, *, most: int, vocab_size: int | None = None) -> None:
        self.settings, self.most = settings, min(most, settings.policy.gamma_max)
        self._vocab_size = vocab_size
        self._combine = COMBINATIONS[settings.combine]
        self._hidden = {"target"} if settings.signals else {"target", "draft"}
        self._sessions: dict[str, Session] = {}
        self._drafted: dict[str, Sequence[TokenSignals]] = {}

    def __len__(self) -> int:
        """Requests that are open."""
        return len(self._sessions)

    def session(self, request: str, budget: Budget) -> Session:
        """The session of a request, opened and started when it is asked for the first time."""
        if (known := self._sessions.get(request)) is not None:
            return known
        settings = self.settings
        opened = settings.policy.session(
            max_new_tokens=budget.tokens,
            compression=settings.compression,
            vocab_size=self._vocab_size,
            hidden=self._hidden if budget.told else {*self._hidden, "budget"},
        )
        opened.start()
        self._sessions[request] = opened
        return opened

    def decide(self, requests: Iterable[tuple[str, Budget]]) -> int:
        """One gamma for some requests.

        Args:
            requests: Name and budget of those that will draft.

        Returns:
            The combination of their gammas, in tokens; 0 if there are none.
        """
        gammas = [self.session(*request).begin_step() for request in requests]
        return min(self._combine(gammas), self.most) if gammas else 0

    def show(self, request: str, signals: Sequence[TokenSignals]) -> None:
        """Keeps the draft's signals at the tokens that were just drafted until `end` or `cut` takes them in."""
        self._drafted[request] = signals

    def cut(self, request: str, budget: Budget, num_drafted: int) -> int:
        """How many of a request's drafted tokens are worth verifying.

        The rule sees tokens one by one, as if they were being drafted, and the last one that it saw stays.

        Args:
            request: Its name.
            budget: Its own.
            num_drafted: Tokens that were drafted.
        """
        session = self.session(request, budget)
        shown = self._drafted.pop(request, ())
        gamma = min(session.begin_step(), num_drafted)
        for place in range(gamma):
            if not session.go_on(*(shown[place] if place < len(shown) else _UNKNOWN)):
                return place + 1
        return gamma

    def end(self, request: str, *, num_drafted: int, num_accepted: int, num_emitted: int) -> None:
        """Takes in what a pass came to; ignored for a request that is not open."""
        if (session := self._sessions.get(request)) is None:
            return
        if not self.settings.per_request and self.settings.signals:
            # The next step has begun already, and only what the target judged is remembered.
            shown = self._drafted.pop(request, ())
            for place in range(num_drafted):
                session.go_on(*(shown[place] if place < len(shown) else _UNKNOWN))
        session.end_step(num_accepted, num_drafted=num_drafted, num_emitted=num_emitted)

    def keep(self, running: Collection[str]) -> None:
        """Closes every request that is not among these."""
        for request in [name for name in self._sessions if name not in running]:
            del self._sessions[request]
            self._drafted.pop(request, None)
