# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding one step at a time: `Engine` decodes one request, `BatchEngine` many together."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from speckv.decoding.clock import device_clock
from speckv.decoding.loop import DecodeLoop, GoOnRows, ModelDrafter, OneRow, PaddedRows, SourceDrafter
from speckv.decoding.protocols import BatchModel, Clock, DraftSource, LanguageModel
from speckv.decoding.request import DecodeStep, RequestState, Stop, token_budget
from speckv.decoding.sampling import SamplingConfig
from speckv.errors import ConfigError
from speckv.models import CausalModel
from speckv.models.processors import Processors
from speckv.models.static import WIDEST_GRAPH
from speckv.types import GAMMA_MAX, BoolArray, FloatArray, IntArray

GoOn = Callable[[FloatArray], bool]
"""Signals of the tokens drafted so far, of shape [drafted, 3] -> whether to draft another one."""
CPU = torch.device("cpu")


class Engine:
    """Decodes one request at a time; `begin_step`, `draft_token` and `verify_draft` are the parts of a `step`.

    `draft` is a model or a source such as `PromptLookup`; None allows gamma 0 alone. Nothing is drafted past the end of
    its context. `clock` is by default the device's.
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
        if draft is not None and not isinstance(draft, DraftSource) and draft.vocab_size != target.vocab_size:
            raise ConfigError(
                f"Expected a draft that scores the target's {target.vocab_size} tokens, got one that scores "
                f"{draft.vocab_size}. Fit it with speckv.models.causal.with_vocabulary."
            )
        self.target, self.draft = target, draft
        self.eos_token_ids = eos_token_ids
        self.sampling = sampling or SamplingConfig()
        device = getattr(target, "device", CPU)
        self.clock = clock or device_clock(device)
        self._fetch_each = device.type == "cpu" or bool(getattr(draft, "on_host", False))
        self._loop: DecodeLoop | None = None
        self._captured: list[object] = []

    def capture_ahead(self, longest: int) -> None:
        """On CUDA, captures the passes of requests of up to `longest` tokens before timing; drops a running request."""
        self.release()
        longest = min(longest, self.target.context_limit)
        if isinstance(self.target, CausalModel):
            verified = range(1, 2 + (GAMMA_MAX if self.draft else 0))
            self._captured.append(self.target.captured(longest, verified, all_logits=True))
        if isinstance(self.draft, CausalModel):
            read = range(1, WIDEST_GRAPH + 1)  # a draft that lags reads more than one token
            longest = min(longest, self.draft.context_limit)
            self._captured.append(self.draft.captured(longest, read, all_logits=False))

    def release(self) -> None:
        """Drops the last request and frees its buffers and captured passes for another one."""
        self._loop = None
        self._captured.clear()

    @property
    def _request(self) -> RequestState | None:
        return self._loop.requests[0] if self._loop and self._loop.requests else None

    @property
    def finish(self) -> str | None:
        """Reason: "eos", "length", "stop" or "failed"; None while the text goes on and before the first request."""
        return self._request.finish if self._request else None

    @property
    def tokens(self) -> list[int]:
        """The output so far."""
        return self._request.tokens if self._request else []

    @property
    def draft_lag(self) -> int:
        """Emitted tokens that the draft has not read, without the newest."""
        return self._running_loop.draft_lag(0)

    @property
    def target_cache(self) -> Any:
        """The target's cached sequence: every token of the request but the newest."""
        target = self._running_loop.target
        assert isinstance(target, OneRow)
        return target.sequence

    @property
    def _running_loop(self) -> DecodeLoop:
        if self._loop is None or self._request is None:
            raise ConfigError("Expected a running request, got one that is not started. Call start first.")
        return self._loop

    def start(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        request: str = "",
        processors: Processors | None = None,
        stop: Stop | None = None,
    ) -> DecodeStep:
        """Reads the prompt with both models and emits the first token, from the target's prefill.

        Args:
            max_new_tokens: At least 1, the first token included; cut at the end of the target's context.
            request: Name; with the sampling seed it fixes every draw.
            processors: Of scores; by default those of the target's `generation_config`.
            stop: Ends the text after the first token for which it is true.

        Raises:
            BudgetError: if the prompt is empty, or it and one token do not fit the target's context.
        """
        budget = token_budget(prompt, max_new_tokens, self.target.context_limit)
        self.release()
        state = RequestState(
            prompt,
            budget,
            self.sampling,
            request=request,
            vocab_size=self.target.vocab_size,
            processors=processors or _own_processors(self.target, prompt, budget),
            stop=stop,
        )
        drafter: ModelDrafter | SourceDrafter | None = None
        target = OneRow(self.target.sequence())
        if isinstance(self.draft, DraftSource):
            drafter = SourceDrafter(self.draft.open(state.draws), on_host=getattr(self.draft, "on_host", False))
        elif self.draft is not None:
            drafter = ModelDrafter(OneRow(self.draft.sequence()))
        self._loop = DecodeLoop(
            target,
            drafter,
            draft_context=self.draft.context_limit if self.draft else 0,
            eos_token_ids=self.eos_token_ids,
            clock=self.clock,
            fetch_each=self._fetch_each,
        )
        return self._loop.admit([state])[0]

    def step(self, gamma: int, go_on: GoOn | None = None) -> DecodeStep:
        """Drafts up to gamma tokens, verifies them in one pass, emits the accepted ones and one of the target's.

        Args:
            gamma: At least 0; cut to the budget left and at a drafted end of text.
            go_on: Called after each drafted token but the last possible one; False ends the draft. The newest token is
                kept, so that rejection sampling keeps the target's distribution whatever the answer depends on.

        Raises:
            ConfigError: if the request is finished or not started, or gamma is negative, or positive without a draft.
        """
        loop = self._checked(gamma)
        if go_on is None:
            return loop.step([gamma])[0]
        return loop.step([gamma], lambda _, signals: np.array([go_on(signals[0])]))[0]

    def begin_step(self, gamma: int) -> None:
        """Opens a step of at most gamma drafted tokens and drops an open one. Errors are those of `step`."""
        self._checked(gamma).begin_step([gamma])

    def _checked(self, gamma: int) -> DecodeLoop:
        loop, request = self._loop, self._request
        if loop is None or request is None or request.finish is not None or not request.num_tokens:
            raise ConfigError(
                f"Expected a running request, got one that is {self.finish or 'not started'}. Call start first."
            )
        if gamma < 0 or (gamma > 0 and loop.drafter is None):
            raise ConfigError(f"Expected gamma >= 0, and 0 where there is no draft, got {gamma}.")
        return loop

    @property
    def can_draft(self) -> bool:
        """Whether the limits of the open step and the draft source allow another token."""
        return self._loop is not None and self._request is not None and self._loop.can_draft(0)

    @property
    def draft_signals(self) -> FloatArray:
        """Signals of the open step's draft, shape [drafted, 3]. Waits for the device."""
        return self._open.draft_signals([0])[0]

    @property
    def draft_seconds(self) -> float:
        """Seconds spent on the open step's draft. Waits for the device."""
        return self._open.draft_seconds

    def draft_token(self) -> None:
        """Drafts one token; requires `can_draft`."""
        self._open.draft_tokens([0])

    def verify_draft(self) -> DecodeStep:
        """Verifies the draft in one pass, emits tokens, and closes the step."""
        return self._open.verify_drafts()[0]

    @property
    def _open(self) -> DecodeLoop:
        if self._loop is None or self._request is None or self._request.draft is None:
            raise ConfigError("Expected an open step, got none. Call begin_step first.")
        return self._loop


class BatchEngine:
    """Decodes many requests together, each with its own gamma; each text is the one that `Engine` decodes alone.

    Each outcome has the seconds of the whole step: sum them over the steps of one request, never over the requests of
    one step. An error inside a step or a prefill ends every request. The draft is a model or None.
    """

    def __init__(
        self,
        target: BatchModel,
        draft: BatchModel | None,
        *,
        eos_token_ids: frozenset[int] = frozenset(),
        sampling: SamplingConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.target, self.draft = target, draft
        self.eos_token_ids = eos_token_ids
        self.sampling = sampling or SamplingConfig()
        self.clock = clock or device_clock(target.device)
        self._fetch_each = target.device.type == "cpu"
        self._begin()

    def _begin(self) -> None:
        self._num_admitted = 0
        models = [model for model in (self.target, self.draft) if model is not None]
        self._caches = [model.rows() for model in models]
        target, *draft = [PaddedRows(*pair) for pair in zip(self._caches, (m.device for m in models), strict=True)]
        self._loop = DecodeLoop(
            target,
            ModelDrafter(draft[0]) if draft else None,
            draft_context=self.draft.context_limit if self.draft else 0,
            eos_token_ids=self.eos_token_ids,
            clock=self.clock,
            fetch_each=self._fetch_each,
        )

    @contextmanager
    def _failure_drops_requests(self) -> Iterator[None]:
        """An error leaves caches half-written, or drafts open that the caller cannot continue."""
        try:
            yield
        except BaseException:
            self._begin()
            raise

    def start(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int | Sequence[int], requests: Sequence[str] = ()
    ) -> list[DecodeStep]:
        """Drops every running request and starts others; see `admit`."""
        self._begin()
        return self.admit(prompts, max_new_tokens=max_new_tokens, requests=requests)

    def admit(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int | Sequence[int], requests: Sequence[str] = ()
    ) -> list[DecodeStep]:
        """Adds requests: both models read the prompts, and the target's prefill gives each its first token.

        Prompts that do not fit the draft's context are decoded without drafts. Requests that finish at once are not
        running. `requests` are names for the sampling seed, numbers from "0" on by default.

        Raises:
            BudgetError: as of `Engine.start`; nothing has changed then.
            ConfigError: if there is no prompt, or not one name or budget a prompt.
        """
        added = self._new_requests(prompts, max_new_tokens, requests)
        with self._failure_drops_requests():
            for cache in self._caches:
                cache.add(len(added))
            steps = self._loop.admit(added)
            self._num_admitted += len(added)
            self._remove_finished()
        return steps

    def _new_requests(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int], names: Sequence[str]
    ) -> list[RequestState]:
        budgets = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        names = names or [str(self._num_admitted + i) for i in range(len(prompts))]
        if not prompts or len(budgets) != len(prompts) or len(names) != len(prompts):
            raise ConfigError(
                f"Expected at least one prompt, and a name and a budget for each, got {len(prompts)} prompts, "
                f"{len(names)} names and {len(budgets)} budgets."
            )
        added, limit = [], self.target.context_limit
        for i, (name, prompt, asked) in enumerate(zip(names, prompts, budgets, strict=True)):
            budget = token_budget(prompt, asked, limit, expected=f"Request {name!r}: expected")
            added.append(
                RequestState(
                    prompt,
                    budget,
                    self.sampling,
                    number=self._num_admitted + i,
                    request=name,
                    vocab_size=self.target.vocab_size,
                    processors=_own_processors(self.target, prompt, budget),
                )
            )
        return added

    @property
    def running(self) -> tuple[RequestState, ...]:
        """Oldest first."""
        return tuple(self._loop.requests[place] for place in self._order())

    def draft_lag(self, request: RequestState) -> int:
        """As of `Engine`, for one running request."""
        return self._loop.draft_lag(self._loop.requests.index(request))

    def _order(self) -> list[int]:
        requests = self._loop.requests
        return sorted(range(len(requests)), key=lambda place: requests[place].number)

    def step(self, gammas: Sequence[int], go_on: GoOnRows | None = None) -> list[DecodeStep]:
        """Drafts up to each request's own gamma, verifies all drafts in one pass, emits tokens in each request.

        Steps come in the order of `running`, which then loses the requests that finished. Arguments are those of
        `Engine.step`, one gamma for each of `running`; `go_on` takes indices into `running`. Raises its ConfigError.
        """
        order = self._order()
        if not order:
            raise ConfigError("Expected a running request, got none. Call start or admit first.")
        if len(gammas) != len(order):
            raise ConfigError(f"Expected one gamma for each of {len(order)} running requests, got {len(gammas)}.")
        if min(gammas) < 0 or (max(gammas) > 0 and self.draft is None):
            raise ConfigError(f"Expected gammas >= 0, and 0 where there is no draft, got {list(gammas)}.")
        rank = np.argsort(order)

        def go_on_ranked(places: IntArray, signals: FloatArray) -> BoolArray:
            assert go_on is not None
            return go_on(rank[places], signals)

        with self._failure_drops_requests():
            steps = self._loop.step([int(gammas[i]) for i in rank], go_on_ranked if go_on else None)
            self._remove_finished()
        return [steps[place] for place in order]

    def _remove_finished(self) -> None:
        requests = self._loop.requests
        for place in reversed(range(len(requests))):
            if requests[place].finish is not None:
                for cache in self._caches:
                    cache.remove(place)
                requests[place] = requests[-1]
                requests.pop()


def _own_processors(target: object, prompt: Sequence[int], max_new_tokens: int) -> Processors | None:
    make = getattr(target, "request_processors", None)
    found: Processors | None = make(prompt, max_new_tokens) if make else None
    return found
