# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding, one step at a time.

`Engine.step(gamma)` is the only decode loop: `generate` drives it with a controller, a live environment with actions.
Who decides token by token from outside takes its parts: `begin_step`, `draft_token` as often as wanted, `verify_draft`.
Between steps the target's cache holds every token but the newest. The draft's holds what it has read; after plain steps
and after a fully accepted draft it lags, and catches up when it next drafts.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from speckv.decoding.protocols import CachedTokens, Clock, LanguageModel
from speckv.decoding.sampling import SamplingConfig, check_finite, choose, draw, gumbel_noise, request_seed, warp_logits
from speckv.decoding.signals import signals
from speckv.decoding.verification import Verification, verify_match, verify_rejection
from speckv.errors import BudgetError, ConfigError
from speckv.types import NUM_SIGNALS, FloatArray, StepOutcome

GoOn = Callable[[FloatArray], bool]
"""Signals of the tokens drafted so far, of shape [drafted, 3] -> whether to draft another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeStep:
    """One step's tokens beside its outcome.

    Attributes:
        tokens: Emitted tokens.
        drafted: Drafted tokens, accepted or not.
        target_signals: Shape [num_emitted, 3]; of the target at each emitted token.
        outcome: Counts, signals, seconds.
    """

    tokens: tuple[int, ...]
    drafted: tuple[int, ...]
    target_signals: FloatArray
    outcome: StepOutcome


@dataclass(slots=True, kw_only=True)
class _Draft:
    """A draft as it grows; `seconds` is the time spent on it."""

    gamma: int
    limit: int
    tokens: list[int] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    probs: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0

    def signals(self) -> FloatArray:
        found = torch.cat(self.rows) if self.rows else torch.zeros(0, NUM_SIGNALS)
        check_finite(found, "draft")
        array: FloatArray = found.cpu().numpy()
        return array


class Engine:
    """Decodes one request at a time with a target and a draft.

    Args:
        target: The model whose text is kept.
        draft: The model that proposes; None allows gamma 0 alone.
        eos_token_ids: Tokens that end the text.
        sampling: How tokens are chosen.
        clock: Seconds; `time.perf_counter` by default. Pass one that synchronises on an accelerator.
    """

    def __init__(
        self,
        target: LanguageModel,
        draft: LanguageModel | None,
        *,
        eos_token_ids: frozenset[int] = frozenset(),
        sampling: SamplingConfig | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.target, self.draft = target, draft
        self.eos_token_ids = eos_token_ids
        self.sampling = sampling or SamplingConfig()
        self.clock = clock
        self.prompt_len = 0
        self.tokens: list[int] = []
        self.finish: str | None = None
        self._budget = 0
        self._context: list[int] = []
        self._draft: _Draft | None = None

    # -- a request ------------------------------------------------------------------------------------------------

    def start(self, prompt: Sequence[int], *, max_new_tokens: int, request: str = "") -> DecodeStep:
        """Reads the prompt with both models and emits the first token, which comes from the target's prefill.

        Args:
            prompt: At least one token id.
            max_new_tokens: Token budget, at least 1, the first token included.
            request: Names the request; with the sampling seed it fixes every draw.

        Raises:
            BudgetError: if the prompt is empty, or it and one token do not fit the context.
        """
        limit = self._context_limit()
        if not prompt:
            raise BudgetError(
                "Expected a prompt of at least one token, got none. Give a beginning-of-text token at least."
            )
        if max_new_tokens < 1:
            raise BudgetError(f"Expected max_new_tokens of at least 1, got {max_new_tokens}.")
        if len(prompt) > limit:
            raise BudgetError(f"Expected a prompt of at most {limit} tokens, got {len(prompt)}. Shorten it.")
        self.prompt_len = len(prompt)
        self.tokens, self.finish = [], None
        # The newest token needs no room in the cache, so the text may be one longer than the context.
        self._budget = min(max_new_tokens, limit + 1 - len(prompt))
        self._context = list(prompt)
        self._seed = request_seed(self.sampling.seed, request)
        self._generator = torch.Generator().manual_seed(request_seed(self._seed, "draws"))
        self._target_cache: CachedTokens = self.target.sequence()
        self._draft_cache: CachedTokens | None = self.draft.sequence() if self.draft else None
        started = self.clock()
        logits = self._target_cache.extend(prompt, num_logits=1)
        if self._draft_cache is not None:
            self._draft_cache.extend(prompt, num_logits=1)
        self._draft = None
        return self._emit(_Draft(gamma=0, limit=0), logits, started)

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
            asked = self.clock()
            stopped = not go_on(self.draft_signals)
            self._open.seconds += self.clock() - asked  # a decision inside a step is part of its time
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
        if gamma < 0 or (gamma > 0 and self._draft_cache is None):
            raise ConfigError(f"Expected gamma >= 0, and 0 where there is no draft, got {gamma}.")
        if self._draft is not None and self._draft.tokens and self._draft_cache is not None:
            self._draft_cache.truncate(len(self._context) - 1)
        self._draft = _Draft(gamma=gamma, limit=min(gamma, self.tokens_left - 1))

    @property
    def can_draft(self) -> bool:
        """Whether the open step can draft another token: gamma, the budget and a drafted end of text end a draft."""
        draft = self._draft
        if draft is None or self._draft_cache is None or len(draft.tokens) >= draft.limit:
            return False
        return not draft.tokens or draft.tokens[-1] not in self.eos_token_ids

    @property
    def draft_signals(self) -> FloatArray:
        """Shape [drafted, 3]; signals of the tokens drafted so far in the open step."""
        return self._open.signals()

    def draft_token(self) -> None:
        """Drafts one token in the open step; `can_draft` says whether that is possible."""
        assert self.can_draft
        assert self._draft_cache is not None
        draft, started = self._open, self.clock()
        unread = draft.tokens[-1:] or self._context[self._draft_cache.length :]
        logits = self._draft_cache.extend(unread, num_logits=1)
        draft.rows.append(signals(logits))
        warped = warp_logits(logits, self.sampling)
        if self.sampling.mode == "rejection":
            draft.probs.append(warped.softmax(-1))
            token = draw(draft.probs[-1][0], self._generator)
        else:
            token = int(choose(warped, self.sampling, self._noise(len(self.tokens) + len(draft.tokens), 1)))
        draft.tokens.append(token)
        draft.seconds += self.clock() - started

    def verify_draft(self, *, asked: int | None = None) -> DecodeStep:
        """Verifies the open step's draft in one pass, emits tokens, and closes the step.

        Args:
            asked: What the outcome gives as gamma, in tokens; what the step was begun with by default.
        """
        draft, started = self._open, self.clock()
        logits = self._target_cache.extend([self._context[-1], *draft.tokens])
        self._draft = None
        return self._emit(draft, logits, started, asked)

    @property
    def draft_seconds(self) -> float:
        """Seconds spent so far on the open step's draft."""
        return self._open.seconds

    @property
    def _open(self) -> _Draft:
        if self._draft is None:
            raise ConfigError("Expected an open step, got none. Call begin_step first.")
        return self._draft

    @property
    def tokens_left(self) -> int:
        """Tokens that the budget still allows."""
        return self._budget - len(self.tokens)

    @property
    def draft_lag(self) -> int:
        """Emitted tokens that the draft has not read, the newest one not counted."""
        return len(self._context) - 1 - (self._draft_cache.length if self._draft_cache else 0)

    # -- the parts of a step --------------------------------------------------------------------------------------

    def _verify(self, draft: _Draft, logits: Tensor) -> Verification:
        check_finite(logits, "target")
        warped = warp_logits(logits, self.sampling)
        if self.sampling.mode == "rejection":
            target_probs = warped.softmax(-1)
            draft_probs = torch.cat(draft.probs) if draft.probs else target_probs[:0]
            return verify_rejection(draft.tokens, draft_probs.cpu(), target_probs.cpu(), generator=self._generator)
        choices = choose(warped, self.sampling, self._noise(len(self.tokens), len(logits)))
        return verify_match(draft.tokens, choices.tolist())

    def _emit(self, draft: _Draft, logits: Tensor, started: float, asked: int | None = None) -> DecodeStep:
        draft_signals = draft.signals()
        verification = self._verify(draft, logits)
        tokens = list(verification.tokens)
        for i, token in enumerate(tokens):
            if token in self.eos_token_ids:
                tokens, self.finish = tokens[: i + 1], "eos"
                break
        self.tokens += tokens
        self._context += tokens
        if self.finish is None and self.tokens_left == 0:
            self.finish = "length"
        self._target_cache.truncate(len(self._context) - 1)
        if self._draft_cache is not None:
            self._draft_cache.truncate(len(self._context) - 1)
        target_signals = signals(logits[: len(tokens)]).cpu().numpy()
        verify_s = self.clock() - started
        num_accepted = min(verification.num_accepted, len(tokens))
        outcome = StepOutcome(
            gamma=draft.gamma if asked is None else asked,
            num_drafted=len(draft.tokens),
            num_accepted=num_accepted,
            num_tested=min(num_accepted + 1, len(draft.tokens)),
            num_emitted=len(tokens),
            draft_signals=draft_signals,
            target_entropy=float(target_signals[-1, 0]),
            target_confidence=float(target_signals[-1, 1]),
            seconds=draft.seconds + verify_s,
            draft_s=draft.seconds,
            verify_s=verify_s,
            finish=self.finish,
        )
        return DecodeStep(
            tokens=tuple(tokens), drafted=tuple(draft.tokens), target_signals=target_signals, outcome=outcome
        )

    def _noise(self, position: int, rows: int) -> Tensor | None:
        if self.sampling.mode != "gumbel":
            return None
        vocab_size = self.target.vocab_size
        return torch.stack([gumbel_noise(self._seed, position + i, vocab_size) for i in range(rows)])

    def _context_limit(self) -> int:
        return min(self.target.context_limit, self.draft.context_limit if self.draft else self.target.context_limit)
