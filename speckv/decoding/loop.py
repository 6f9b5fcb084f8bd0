# SPDX-License-Identifier: Apache-2.0
"""The decode loop: draft, verify, emit, for one request or for many that share passes.

Between steps the target's cache holds every token of a text but the newest. The draft's cache may lag further behind.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speckv.decoding.protocols import CachedRows, CachedTokens, Clock, Drafter, Proposal
from speckv.decoding.request import DecodeStep, Draft, RequestState, propose, to_host, verify
from speckv.decoding.sampling import check_finite
from speckv.errors import BudgetError, ConfigError
from speckv.models.device import to_device, token_tensor
from speckv.models.signals import Scores
from speckv.types import NUM_SIGNALS, BoolArray, FloatArray, IntArray

P = ParamSpec("P")
R = TypeVar("R")
Tokens = Sequence[int] | Tensor
"""Token ids on the host, or of shape [tokens] on the device."""
GoOnRows = Callable[[IntArray, FloatArray], BoolArray]
"""Places [asked] and signals of what each has drafted [asked, drafted, 3] -> whether each drafts another token."""


class OneRow:
    """The cached sequence of a loop with one request."""

    def __init__(self, sequence: CachedTokens) -> None:
        self.sequence = sequence

    def length(self, _: int) -> int:
        """In tokens."""
        return self.sequence.length

    def truncate(self, _: int, length: int) -> None:
        """Removes every token past `length`."""
        self.sequence.truncate(length)

    def score(self, _: Sequence[int], pieces: Sequence[Tokens], *, last_only: bool = False) -> Scores:
        """As `PaddedRows.score`."""
        return self.sequence.score(pieces[0], num_logits=1 if last_only else None)


class PaddedRows:
    """The cached sequences of a loop with many requests; pieces are padded to share a pass."""

    def __init__(self, cache: CachedRows, device: torch.device) -> None:
        self.cache, self._device = cache, device

    def length(self, place: int) -> int:
        """In tokens."""
        return self.cache.lengths[place]

    def truncate(self, place: int, length: int) -> None:
        """Removes every token of a row past `length`."""
        self.cache.truncate(place, length)

    def score(self, places: Sequence[int], pieces: Sequence[Tokens], *, last_only: bool = False) -> Scores:
        """Appends a piece to each row, all on the host or all on the device; scores each token or the last."""
        counts = [len(piece) for piece in pieces]
        tensors = [piece for piece in pieces if isinstance(piece, Tensor)]
        tokens = (
            pad_sequence(tensors, batch_first=True)
            if tensors
            else to_device(
                torch.tensor([[*piece, *[0] * (max(counts) - len(piece))] for piece in pieces]), self._device
            )
        )
        return Scores.of(self.cache.extend(places, tokens, counts, last_only=last_only))


class ModelDrafter:
    """A language model that drafts for all requests of a loop, one pass a token."""

    def __init__(self, rows: OneRow | PaddedRows) -> None:
        self.rows = rows
        self.length, self.truncate = rows.length, rows.truncate

    def read(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Reads prompts."""
        self.rows.score(places, prompts, last_only=True)

    def propose(self, places: Sequence[int], requests: Sequence[RequestState]) -> list[Proposal]:
        """Reads the unread tokens and proposes each request's next one."""
        pieces: list[Tokens] = []
        for place, request in zip(places, requests, strict=True):
            proposals = request.open_draft.proposals
            pieces.append(proposals[-1].token if proposals else request.context[self.length(place) :])
        scores = self.rows.score(places, pieces, last_only=True)
        positions = [request.num_tokens + len(request.open_draft.proposals) for request in requests]
        return propose([request.draws for request in requests], scores, positions)


class SourceDrafter:
    """The `Drafter` of a source that is no model, in a loop with one request."""

    def __init__(self, drafter: Drafter, *, on_host: bool) -> None:
        self._drafter, self.on_host = drafter, on_host

    def length(self, _: int) -> int:
        """Tokens read, proposals included."""
        return self._drafter.length

    def truncate(self, _: int, length: int) -> None:
        """Removes every token past `length`."""
        self._drafter.truncate(length)

    def read(self, _: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Reads the prompt."""
        self._drafter.read(prompts[0])

    def can_propose(self, request: RequestState) -> bool:
        """Whether the source has a token after the text and the draft."""
        return self._drafter.can_propose(request.unread(self._drafter.length))

    def propose(self, _: Sequence[int], requests: Sequence[RequestState]) -> list[Proposal]:
        """Reads the unread tokens and proposes the next one."""
        (request,) = requests
        proposals = request.open_draft.proposals
        on_device = proposals and not self.on_host
        unread = proposals[-1].token if on_device else request.unread(self._drafter.length)
        return [self._drafter.propose(unread, request.num_tokens + len(proposals))]


def _failure_ends_requests(
    method: Callable[Concatenate["DecodeLoop", P], R],
) -> Callable[Concatenate["DecodeLoop", P], R]:
    """Ends all requests if a part of a step raises, because the caches may be half-written."""

    @functools.wraps(method)
    def guarded(loop: "DecodeLoop", /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(loop, *args, **kwargs)
        except (BudgetError, ConfigError):
            raise  # refused before anything was touched
        except BaseException:
            for request in loop.requests:
                request.finish, request.draft = "failed", None
            raise

    return guarded


class DecodeLoop:
    """Drafts for its requests, verifies all drafts in one pass of the target, and emits tokens.

    The place of a request is its index in `requests` and its row in the caches. Without a drafter gamma must be 0.
    With `fetch_each` the host reads each drafted token at once, as on a CPU. Otherwise it waits for the device only
    for signals and at the end of a step: a draft may then run past an end of text, and is cut afterwards.
    """

    def __init__(
        self,
        target: OneRow | PaddedRows,
        drafter: ModelDrafter | SourceDrafter | None,
        *,
        draft_context: int,
        eos_token_ids: frozenset[int],
        clock: Clock,
        fetch_each: bool,
    ) -> None:
        self.target, self.drafter = target, drafter
        self.requests: list[RequestState] = []
        self._draft_context, self._eos, self._clock, self._fetch_each = draft_context, eos_token_ids, clock, fetch_each
        self._draft_spans: list[tuple[Any, Any]] = []
        self._first_spans = 0  # those of the first token

    @_failure_ends_requests
    def admit(self, requests: Sequence[RequestState]) -> list[DecodeStep]:
        """Adds requests: both models read the prompts, and the target's prefill gives each its first token."""
        started = self._clock()
        first = len(self.requests)
        places = range(first, first + len(requests))
        prompts = [request.context for request in requests]
        self.requests += requests
        self._draft_spans, self._first_spans = [], 0
        for request in requests:
            request.begin_step(0, self._draft_context)
        scores = self.target.score(places, prompts, last_only=True)
        fitting = [row for row, prompt in enumerate(prompts) if len(prompt) <= self._draft_context]
        if self.drafter is not None and fitting:
            self.drafter.read([places[row] for row in fitting], [prompts[row] for row in fitting])
        return self._emit(first, scores, started)

    def step(self, gammas: Sequence[int], go_on: GoOnRows | None = None) -> list[DecodeStep]:
        """Drafts up to a gamma for each request, verifies, and emits."""
        self.begin_step(gammas)
        while places := [place for place in range(len(self.requests)) if self.can_draft(place)]:
            self.draft_tokens(places)
            if go_on is not None:
                self._end_drafts(places, go_on)
        return self.verify_drafts()

    def begin_step(self, gammas: Sequence[int]) -> None:
        """Opens a step and drops open drafts."""
        self._draft_spans, self._first_spans = [], 0
        for place, (request, gamma) in enumerate(zip(self.requests, gammas, strict=True)):
            if request.draft is not None and request.draft.proposals and self.drafter is not None:
                self.drafter.truncate(place, len(request.context) - 1)
            request.begin_step(gamma, self._draft_context)

    def can_draft(self, place: int) -> bool:
        """Whether a request can draft another token."""
        request = self.requests[place]
        draft = request.draft
        if draft is None or self.drafter is None or len(draft.proposals) >= draft.limit:
            return False
        if not draft.on_host:
            return True
        if draft.tokens and draft.tokens[-1] in self._eos:
            return False
        if isinstance(self.drafter, ModelDrafter):
            return True
        started = self._clock()
        can_propose = self.drafter.can_propose(request)
        self._draft_spans.append((started, self._clock()))  # the search is part of a lookup's time
        return can_propose

    @_failure_ends_requests
    def draft_tokens(self, places: Sequence[int]) -> None:
        """Drafts one token for each request; requires `can_draft`."""
        assert self.drafter is not None
        started = self._clock()
        requests = [self.requests[place] for place in places]
        for request, proposal in zip(requests, self.drafter.propose(places, requests), strict=True):
            request.open_draft.proposals.append(proposal)
        if self._fetch_each:
            _fetch([request.open_draft for request in requests])
        self._draft_spans.append((started, self._clock()))
        self._first_spans = self._first_spans or len(self._draft_spans)

    def draft_signals(self, places: Sequence[int]) -> list[FloatArray]:
        """Signals of each draft, shape [drafted, 3]. Waits for the device."""
        drafts, started = [self.requests[place].open_draft for place in places], self._clock()
        if not all(draft.on_host for draft in drafts):
            _fetch(drafts)
            self._draft_spans.append((started, self._clock()))
        return [draft.signals for draft in drafts]

    @property
    def draft_seconds(self) -> float:
        """Seconds spent on the open step's drafts. Waits for the device."""
        return _summed(self._draft_spans)

    @property
    def first_draft_seconds(self) -> float:
        """Those spent on the first drafted token."""
        return _summed(self._draft_spans[: self._first_spans])

    def draft_lag(self, place: int) -> int:
        """Emitted tokens that the draft has not read, without the newest."""
        return len(self.requests[place].context) - 1 - (self.drafter.length(place) if self.drafter else 0)

    def _end_drafts(self, places: Sequence[int], go_on: GoOnRows) -> None:
        asked = [place for place in places if self.can_draft(place)]
        if not asked:
            return
        signals = np.stack(self.draft_signals(asked))
        started = self._clock()
        answers = go_on(np.array(asked, np.int64), signals)
        self._draft_spans.append((started, self._clock()))  # a decision inside a step is part of its time
        for place, answer in zip(asked, answers, strict=True):
            if not answer:
                self.requests[place].open_draft.end()

    @_failure_ends_requests
    def verify_drafts(self) -> list[DecodeStep]:
        """Verifies all drafts in one pass, emits tokens, and closes the step."""
        started = self._clock()
        drafts = [request.open_draft for request in self.requests]
        newest = [request.context[-1] for request in self.requests]
        pieces: list[Tokens]
        if all(draft.on_host for draft in drafts):
            pieces = [[token, *draft.tokens] for token, draft in zip(newest, drafts, strict=True)]
        else:
            device = next(proposal.token.device for draft in drafts for proposal in draft.proposals)
            first = token_tensor(newest, device)[:, None]
            pieces = [
                torch.cat([token, *(proposal.token for proposal in draft.proposals)])
                for token, draft in zip(first, drafts, strict=True)
            ]
        return self._emit(0, self.target.score(range(len(drafts)), pieces), started)

    def _emit(self, first: int, scores: Scores, started: Any) -> list[DecodeStep]:
        requests = self.requests[first:]
        drafts = [request.open_draft for request in requests]
        verifications = verify(
            [request.draws for request in requests],
            [draft.proposals for draft in drafts],
            scores,
            [request.num_tokens for request in requests],
        )
        own_signals = torch.split(scores.signals, [len(draft.proposals) + 1 for draft in drafts])
        signals: list[Tensor] = []
        tokens: list[Tensor] = []
        for draft, verification, own in zip(drafts, verifications, own_signals, strict=True):
            unfetched = draft.unfetched()
            # The count is a row of its own, whose signals mean nothing.
            signals += [*(proposal.signals for proposal in unfetched), own, own[:1]]
            tokens += [
                *(proposal.token for proposal in unfetched),
                verification.tokens,
                verification.num_accepted[None],
            ]
        host = to_host(signals, tokens)  # all that the host needs comes in one transfer
        emitted = []
        for place, (request, draft) in enumerate(zip(requests, drafts, strict=True), first):
            begin = len(draft.unfetched())
            end = begin + len(draft.proposals) + 1
            drafted, verified, num_kept = host[:begin], host[begin:end], int(host[end, NUM_SIGNALS])
            host = host[end + 1 :]
            if begin:
                check_finite(drafted, "draft")
                draft.add_fetched(drafted)
            draft.cut(self._eos)
            check_finite(verified, "target")
            kept = request.emit(verified[: num_kept + 1, NUM_SIGNALS].astype(int).tolist(), self._eos)
            emitted.append((num_kept, kept, verified[:, :NUM_SIGNALS]))
            self.target.truncate(place, len(request.context) - 1)
            if self.drafter is not None:
                self.drafter.truncate(place, len(request.context) - 1)
        verify_s = float(self._clock() - started)
        draft_s, first_draft_s = self.draft_seconds, self.first_draft_seconds
        return [
            request.close_step(*step, draft_s=draft_s, first_draft_s=first_draft_s, verify_s=verify_s)
            for request, step in zip(requests, emitted, strict=True)
        ]


def _summed(spans: Sequence[tuple[Any, Any]]) -> float:
    return float(sum(later - earlier for earlier, later in spans))


def _fetch(drafts: Sequence[Draft]) -> None:
    parts = [draft.unfetched() for draft in drafts]
    proposals = [proposal for part in parts for proposal in part]
    host = to_host([proposal.signals for proposal in proposals], [proposal.token for proposal in proposals])
    check_finite(host, "draft")
    for draft, part in zip(drafts, parts, strict=True):
        draft.add_fetched(host[: len(part)])
        host = host[len(part) :]
