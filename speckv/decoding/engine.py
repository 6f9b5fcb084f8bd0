# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding, one step at a time.

`Engine.step(gamma)` is the decode loop of one request: `generate` drives it with a controller, a live environment with
actions. `BatchEngine` decodes many requests.
A caller that decides token by token uses its parts: `begin_step`, `draft_token` as often as wanted, `verify_draft`.
Between steps the target's cache holds every token but the newest. The draft's holds what it has read; after plain steps
and after a fully accepted draft it lags, and catches up when it next drafts.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from speckv.decoding.clock import device_clock
from speckv.decoding.draws import Draws
from speckv.decoding.model_draft import ModelDraft
from speckv.decoding.open_draft import OpenDraft, signal_rows, to_host
from speckv.decoding.protocols import CachedTokens, Clock, Drafter, DraftSource, LanguageModel
from speckv.decoding.sampling import SamplingConfig, check_finite
from speckv.decoding.step import DecodeStep, token_budget, up_to_end
from speckv.errors import BudgetError, ConfigError
from speckv.models import CausalModel
from speckv.models.processors import Processors
from speckv.models.signals import Scores
from speckv.models.static import WIDEST_GRAPH
from speckv.models.transfer import token_tensor
from speckv.types import GAMMA_MAX, NUM_SIGNALS, FloatArray

P = ParamSpec("P")
R = TypeVar("R")
Stop = Callable[[list[int]], bool]
"""Prompt and output so far -> whether the text ends there; called once for every emitted token, in order."""
GoOn = Callable[[FloatArray], bool]
"""Signals of the tokens drafted so far, of shape [drafted, 3] -> whether to draft another one."""


def _fails_with_its_step(method: Callable[P, R]) -> Callable[P, R]:
    """Ends the request where a part of a step raises: its caches may hold half of what they should."""

    @functools.wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except (BudgetError, ConfigError):
            raise  # refused before anything was touched
        except BaseException:
            engine: Any = args[0]
            engine.finish, engine._draft = "failed", None
            raise

    return guarded


class Engine:
    """Decodes one request at a time with a target and a draft.

    Args:
        target: The model whose text is kept.
        draft: What proposes: a model, or another source of drafts such as `PromptLookup`; None allows gamma 0 alone.
            Where its context is shorter than the target's, texts go on without drafts past its end.
        eos_token_ids: Tokens that end the text.
        sampling: How tokens are chosen.
        clock: Reads instants; the device's by default.

    Raises:
        ConfigError: if a draft model scores another number of tokens than the target; see
            `speckv.models.vocabulary.with_vocabulary`.

    On a CPU each drafted token is on the host at once. Elsewhere nothing waits for the device until a step ends or
    `draft_signals` is read: a draft may then run past a drafted end of text, and is cut afterwards.
    """

    def __init__(
        self,
        target: LanguageModel,
        draft: LanguageModel | DraftSource | None,
        *,
        eos_token_ids: frozenset[int] = frozenset(),
        sampling: SamplingConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.target = target
        self.draft = draft if draft is None or isinstance(draft, DraftSource) else ModelDraft(draft)
        if isinstance(self.draft, ModelDraft) and self.draft.model.vocab_size != target.vocab_size:
            raise ConfigError(
                f"Expected a draft that scores the target's {target.vocab_size} tokens, got one that scores "
                f"{self.draft.model.vocab_size}. Fit it with speckv.models.vocabulary.with_vocabulary."
            )
        self.eos_token_ids = eos_token_ids
        self.sampling = sampling or SamplingConfig()
        device = getattr(target, "device", torch.device("cpu"))
        self.clock = clock or device_clock(device)
        self._on_host = bool(getattr(self.draft, "on_host", False))
        self._sees_each = device.type == "cpu" or self._on_host
        self.prompt_len = 0
        self.tokens: list[int] = []
        self.finish: str | None = None
        self._budget = 0
        self._stop: Stop | None = None
        self._context: list[int] = []
        self._draft: OpenDraft | None = None
        self._target_cache: CachedTokens | None = None
        self._drafter: Drafter | None = None
        self._captured: list[object] = []

    def capture_ahead(self, longest: int) -> None:
        """Captures the passes of requests up to a length, where passes are captured: on CUDA.

        A pass is captured when it is first asked for, which takes as long as some steps do: call this before anything
        is timed. A running request is dropped.

        Args:
            longest: Prompt and output of a request, in tokens.
        """
        self.let_go()
        longest = min(longest, self.target.context_limit)
        if isinstance(self.target, CausalModel):
            verified = range(1, 2 + (GAMMA_MAX if self.draft else 0))
            self._captured.append(self.target.captured(longest, verified, all_logits=True))
        if isinstance(self.draft, ModelDraft) and isinstance(self.draft.model, CausalModel):
            read = range(1, WIDEST_GRAPH + 1)  # a draft that lags reads more than one token
            longest = min(longest, self.draft.context_limit)
            self._captured.append(self.draft.model.captured(longest, read, all_logits=False))

    def let_go(self) -> None:
        """Drops the last request: whoever comes next has its buffers, and the passes captured on them."""
        self.tokens, self.finish = [], None
        self._draft = self._target_cache = self._drafter = None
        self._captured.clear()

    # -- a request ------------------------------------------------------------------------------------------------

    @_fails_with_its_step
    def start(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        request: str = "",
        processors: Processors | None = None,
        stop: Stop | None = None,
    ) -> DecodeStep:
        """Reads the prompt with both models and emits the first token, which comes from the target's prefill.

        Args:
            prompt: At least one token id.
            max_new_tokens: Token budget, at least 1, the first token included; cut at the end of the target's context.
            request: Names the request; with the sampling seed it fixes every draw.
            processors: Of scores; those of the target's own defaults by default.
            stop: Ends the text behind the first token for which it is true.

        Raises:
            BudgetError: if the prompt is empty, or it and one token do not fit the target's context.
        """
        budget = token_budget(prompt, max_new_tokens, self.target.context_limit)
        self.let_go()
        self.prompt_len = len(prompt)
        self._budget = budget
        self._stop = stop
        self._context = list(prompt)
        self._draws = Draws(
            self.sampling,
            request=request,
            vocab_size=self.target.vocab_size,
            processors=processors or own_processors(self.target, prompt, budget),
            text=self._context,
        )
        self._target_cache = self.target.sequence()
        self._drafter = self.draft.open(self._draws) if self.draft else None
        started = self.clock()
        scores = self._target_cache.score(prompt, num_logits=1)
        if self._drafter is not None and self._draft_room > 0:
            self._drafter.read(prompt)
        return self._emit(OpenDraft(gamma=0, limit=0), scores, started)

    def step(self, gamma: int, go_on: GoOn | None = None) -> DecodeStep:
        """Drafts up to gamma tokens, verifies them in one pass, emits the accepted ones and one of the target's.

        Args:
            gamma: At least 0; cut to the budget left and at a drafted end of text.
            go_on: Asked after each drafted token but the last possible one, with the signals of the tokens drafted so
                far, of shape [drafted, 3]; False ends the draft. The newest token stays in it, so that whatever the
                answer depends on, rejection sampling keeps the target's distribution.

        Raises:
            ConfigError: if the request is finished or not started, or gamma is negative, or positive without a draft.
        """
        self.begin_step(gamma)
        while self.can_draft:
            self.draft_token()
            if go_on is None or not self.can_draft:
                continue
            signals, asked = self.draft_signals, self.clock()
            stopped = not go_on(signals)
            self._open.spans.append((asked, self.clock()))  # a decision inside a step is part of its time
            if stopped:
                return self.verify_draft(asked=len(self._open.tokens))
        return self.verify_draft()

    def begin_step(self, gamma: int) -> None:
        """Opens a step; one that was open and not verified begins anew, and what it drafted is dropped.

        Args:
            gamma: Most tokens to draft.

        Raises:
            ConfigError: as `step`.
        """
        if self.finish is not None or not self.tokens:
            raise ConfigError(
                f"Expected a running request, got one that is {self.finish or 'not started'}. Call start first."
            )
        if gamma < 0 or (gamma > 0 and self._drafter is None):
            raise ConfigError(f"Expected gamma >= 0, and 0 where there is no draft, got {gamma}.")
        if self._draft is not None and self._draft.proposals and self._drafter is not None:
            self._drafter.truncate(len(self._context) - 1)
        self._draws.begin_step()
        self._draft = OpenDraft(gamma=gamma, limit=min(gamma, self.tokens_left - 1, self._draft_room))

    @property
    def can_draft(self) -> bool:
        """Whether the open step can draft another token.

        A draft ends at gamma, at the token budget, at the end of the draft's context and behind a drafted end of text.
        A source that has nothing to propose ends it too, perhaps at once: the step is then a plain one.
        """
        draft = self._draft
        if draft is None or self._drafter is None or len(draft.proposals) >= draft.limit:
            return False
        if len(draft.tokens) < len(draft.proposals):
            return True  # not seen yet
        if draft.tokens and draft.tokens[-1] in self.eos_token_ids:
            return False
        if not self._on_host:
            return self._drafter.can_propose(self._unread(self._drafter))
        started = self.clock()
        can_propose = self._drafter.can_propose(self._unread(self._drafter))
        draft.spans.append((started, self.clock()))  # looking is part of what a lookup does
        return can_propose

    @property
    def draft_signals(self) -> FloatArray:
        """Shape [drafted, 3]; signals of the tokens drafted so far in the open step. Waits for the device."""
        draft, started = self._open, self.clock()
        if len(draft.tokens) < len(draft.proposals):
            draft.fetch()
            draft.spans.append((started, self.clock()))
        return draft.found

    @_fails_with_its_step
    def draft_token(self) -> None:
        """Drafts one token in the open step; `can_draft` says whether that is possible."""
        assert self.can_draft
        assert self._drafter is not None
        draft, started = self._open, self.clock()
        on_device = draft.proposals and not self._on_host
        unread = draft.proposals[-1].token if on_device else self._unread(self._drafter)
        draft.proposals.append(self._drafter.propose(unread, len(self.tokens) + len(draft.proposals)))
        if self._sees_each:
            draft.fetch()
        draft.spans.append((started, self.clock()))

    @_fails_with_its_step
    def verify_draft(self, *, asked: int | None = None) -> DecodeStep:
        """Verifies the open step's draft in one pass, emits tokens, and closes the step.

        Args:
            asked: What the outcome gives as gamma, in tokens; what the step was begun with by default.
        """
        draft, started = self._open, self.clock()
        assert self._target_cache is not None
        self._draft = None
        newest = self._context[-1:]
        if len(draft.tokens) == len(draft.proposals):
            unread: list[int] | Tensor = [*newest, *draft.tokens]
        else:
            tokens = [proposal.token for proposal in draft.proposals]
            unread = torch.cat([token_tensor(newest, tokens[0].device), *tokens])
        return self._emit(draft, self._target_cache.score(unread), started, asked)

    @property
    def draft_seconds(self) -> float:
        """Seconds spent so far on the open step's draft; waits for the device."""
        return self._open.seconds

    def _unread(self, drafter: Drafter) -> list[int]:
        """What the drafter has not read of the text and of the open draft, as far as the host knows it."""
        ahead = max(0, drafter.length - len(self._context))
        return self._context[drafter.length :] + self._open.tokens[ahead:]

    @property
    def _open(self) -> OpenDraft:
        if self._draft is None:
            raise ConfigError("Expected an open step, got none. Call begin_step first.")
        return self._draft

    @property
    def tokens_left(self) -> int:
        """Tokens that the budget still allows."""
        return self._budget - len(self.tokens)

    @property
    def target_cache(self) -> Any:
        """The target's cached sequence; it holds every token of the request but the newest."""
        return self._target_cache

    @property
    def _draft_room(self) -> int:
        """Tokens that can be drafted behind the text before the draft's context is full, at least 0."""
        return max(0, self.draft.context_limit + 1 - len(self._context)) if self.draft else 0

    @property
    def draft_lag(self) -> int:
        """Emitted tokens that the draft has not read, the newest one not counted."""
        return len(self._context) - 1 - (self._drafter.length if self._drafter else 0)

    # -- the parts of a step --------------------------------------------------------------------------------------

    def _emit(self, draft: OpenDraft, scores: Scores, started: Any, asked: int | None = None) -> DecodeStep:
        verdict = self._draws.verify(draft.proposals, scores, len(self.tokens))
        # All that the host wants to know comes in one transfer. Token ids are exact in float32 below 2**24.
        rows = [*draft.unknown(), signal_rows(scores.signals, verdict.tokens)]
        count = verdict.num_accepted.float().expand(1, NUM_SIGNALS + 1)
        told = to_host([*rows, count])
        width = len(scores.signals)
        draft.take(told[: -1 - width])
        draft.cut(self.eos_token_ids)
        found, num_accepted = told[-1 - width : -1], int(told[-1, 0])
        check_finite(found, "target")
        tokens = up_to_end(found[: num_accepted + 1, NUM_SIGNALS].astype(int).tolist(), self.eos_token_ids)
        tokens = self._committed(tokens)
        if tokens[-1] in self.eos_token_ids:
            self.finish = "eos"
        self.tokens += tokens
        self._context += tokens
        if self.finish is None and self.tokens_left == 0:
            self.finish = "length"
        assert self._target_cache is not None
        self._target_cache.truncate(len(self._context) - 1)
        if self._drafter is not None:
            self._drafter.truncate(len(self._context) - 1)
        verify_s = float(self.clock() - started)
        return DecodeStep.of(
            gamma=draft.gamma if asked is None else asked,
            drafted=draft.tokens,
            draft_signals=draft.found,
            num_kept=num_accepted,
            tokens=tokens,
            target_signals=found[:, :NUM_SIGNALS],
            draft_s=draft.seconds,
            verify_s=verify_s,
            finish=self.finish,
        )

    def _committed(self, tokens: list[int]) -> list[int]:
        """Brings processors past each token in turn, up to the first at which the caller's criterion ends the text."""
        for row in range(len(tokens)):
            self._draws.commit(row)
            if self._stop is not None and self._stop(self._context + tokens[: row + 1]):
                self.finish = "stop"
                return tokens[: row + 1]
        return tokens


def own_processors(target: object, prompt: Sequence[int], max_new_tokens: int) -> Processors | None:
    """Processors of one request by the target's own defaults; None where the model has none."""
    make = getattr(target, "request_processors", None)
    found: Processors | None = make(prompt, max_new_tokens) if make else None
    return found
