# SPDX-License-Identifier: Apache-2.0
"""The state of one request: text, budget, draws, and the draft of the open step."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from speckv.decoding.protocols import Proposal
from speckv.decoding.sampling import (
    SamplingConfig,
    Verification,
    choose,
    draw,
    gumbel_noise,
    request_seed,
    verify_match,
    verify_rejection,
    warp_logits,
)
from speckv.errors import BudgetError
from speckv.models.device import to_device, token_tensor
from speckv.models.processors import Processors
from speckv.models.signals import Scores
from speckv.types import NUM_SIGNALS, FloatArray, StepOutcome

logger = logging.getLogger(__name__)
Stop = Callable[[list[int]], bool]
"""Prompt and output so far -> whether the text ends there; called once for every emitted token, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeStep:
    """One step's emitted and drafted tokens, and its outcome; `target_signals` has shape [num_emitted, 3]."""

    tokens: tuple[int, ...]
    drafted: tuple[int, ...]
    target_signals: FloatArray
    outcome: StepOutcome


@dataclass(slots=True, kw_only=True)
class Draft:
    """The draft of an open step, on the device and, as far as it was fetched, on the host.

    Attributes:
        gamma: As requested, or the number drafted if a stopping controller ended the draft.
        limit: Most tokens that gamma, the token budget and the draft's context allow.
        tokens: The proposals on the host; their `signals` have shape [tokens, 3].
    """

    gamma: int
    limit: int
    proposals: list[Proposal] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    signals: FloatArray = field(default_factory=lambda: np.zeros((0, NUM_SIGNALS), np.float32))

    @property
    def on_host(self) -> bool:
        """Whether the host has all proposals."""
        return len(self.tokens) == len(self.proposals)

    def unfetched(self) -> list[Proposal]:
        """The proposals that are not on the host."""
        return self.proposals[len(self.tokens) :]

    def add_fetched(self, rows: FloatArray) -> None:
        """Adds signals and token of each other proposal, shape [fetched, 4]."""
        self.signals = np.concatenate([self.signals, rows[:, :NUM_SIGNALS]])
        self.tokens += rows[:, NUM_SIGNALS].astype(int).tolist()

    def end(self) -> None:
        """Drafts no further token."""
        self.gamma = self.limit = len(self.proposals)

    def cut(self, eos_token_ids: frozenset[int]) -> None:
        """Drops tokens past an end of text."""
        self.tokens = up_to_end(self.tokens, eos_token_ids)
        self.signals = self.signals[: len(self.tokens)]


class Draws:
    """The sampling of one request; processors read `text`, prompt and output, which the engine extends."""

    def __init__(
        self,
        sampling: SamplingConfig,
        *,
        request: str,
        vocab_size: int,
        processors: Processors | None = None,
        text: Sequence[int] = (),
    ) -> None:
        self.sampling, self.processors = sampling, processors
        self.seed = request_seed(sampling.seed, request)
        self._vocab_size, self._text = vocab_size, text
        self._generator: torch.Generator | None = None
        self._drafted: list[Tensor] = []
        self._noise: dict[int, Tensor] = {}

    def begin_step(self, position: int) -> None:
        """Prepares a step, given its first output position."""
        self._drafted.clear()
        self._noise = {place: noise for place, noise in self._noise.items() if place >= position}
        if self.processors is not None:
            self.processors.begin_draft()

    def commit(self, row: int) -> None:
        """Advances the processors past the emitted token of a verification row; rows come in order."""
        if self.processors is not None:
            self.processors.commit_row(row)

    def add_drafted(self, token: Tensor) -> None:
        """Adds a token of shape [1] to the text that processors read in this step."""
        if self.processors is not None:
            self._drafted.append(token)

    def process_draft(self, logits: Tensor) -> Tensor:
        """Applies the processors to the draft's float32 logits [1, vocab]."""
        if self.processors is None:
            return logits
        ids = torch.cat([token_tensor(self._text, logits.device), *self._drafted])[None]
        return self.processors.draft(ids, logits)

    def process_verified(self, drafted: Tensor, logits: Tensor) -> Tensor:
        """Applies the processors to the target's float32 logits [drafted + 1, vocab]."""
        if self.processors is None:
            return logits
        return self.processors.verify(token_tensor(self._text, logits.device)[None], drafted, logits)

    def noise_at(self, position: int, device: torch.device) -> Tensor:
        """Gumbel noise of shape [vocab]; draft and target share it, and a rejected position is drafted again."""
        if position not in self._noise:
            self._noise[position] = to_device(gumbel_noise(self.seed, position, self._vocab_size), device)
        return self._noise[position].to(device)

    def generator_on(self, device: torch.device) -> torch.Generator:
        """The generator of this request's draws, made on first use."""
        if self._generator is None:
            self._generator = torch.Generator(device).manual_seed(request_seed(self.seed, "draws"))
        return self._generator


def propose(draws: Sequence[Draws], scores: Scores, positions: Sequence[int]) -> list[Proposal]:
    """Drafts a token for each request, from its row of the draft's scores."""
    if any(one.processors is not None for one in draws):
        parts = torch.split(scores.logits.float(), 1)
        scores = _with_logits(scores, [one.process_draft(part) for one, part in zip(draws, parts, strict=True)])
    tokens: Sequence[Tensor]
    probs: Sequence[Tensor | None] = [None] * len(draws)
    if draws[0].sampling.mode == "rejection":
        rows = torch.split(warp_logits(scores.logits, draws[0].sampling).softmax(-1), 1)
        tokens = [draw(row, one.generator_on(row.device)) for one, row in zip(draws, rows, strict=True)]
        probs = rows
    else:
        tokens = torch.split(_choose(scores, draws, positions), 1)
    proposals = [Proposal(*parts) for parts in zip(tokens, torch.split(scores.signals, 1), probs, strict=True)]
    for one, proposal in zip(draws, proposals, strict=True):
        one.add_drafted(proposal.token)
    return proposals


def verify(
    draws: Sequence[Draws], drafts: Sequence[Sequence[Proposal]], scores: Scores, positions: Sequence[int]
) -> list[Verification]:
    """Verifies each request's draft, oldest proposal first; a draft may be empty.

    `scores` has the target's rows for each request's proposals and one more; `positions` is that of its first row.
    """
    device, sizes = scores.best.device, [len(draft) + 1 for draft in drafts]
    drafted = [
        to_device(torch.cat([proposal.token for proposal in draft]), device) if draft else scores.best[:0]
        for draft in drafts
    ]
    if any(one.processors is not None for one in draws):
        parts = zip(draws, drafted, torch.split(scores.logits.float(), sizes), strict=True)
        scores = _with_logits(scores, [one.process_verified(tokens, part) for one, tokens, part in parts])
    if draws[0].sampling.mode != "rejection":
        rows = [(one, first + i) for one, first, size in zip(draws, positions, sizes, strict=True) for i in range(size)]
        chosen = torch.split(_choose(scores, [one for one, _ in rows], [position for _, position in rows]), sizes)
        return [verify_match(tokens, own) for tokens, own in zip(drafted, chosen, strict=True)]
    found = []
    target = warp_logits(scores.logits, draws[0].sampling).softmax(-1)
    for one, draft, tokens, own in zip(draws, drafts, drafted, torch.split(target, sizes), strict=True):
        probs = [proposal.probs for proposal in draft if proposal.probs is not None]
        draft_probs = to_device(torch.cat(probs), device).to(own.dtype) if probs else own[:0]
        found.append(verify_rejection(tokens, draft_probs, own, generator=one.generator_on(device)))
    return found


def _choose(scores: Scores, draws: Sequence[Draws], positions: Sequence[int]) -> Tensor:
    sampling = draws[0].sampling
    if sampling.mode == "greedy":
        return scores.best
    noise = [one.noise_at(position, scores.logits.device) for one, position in zip(draws, positions, strict=True)]
    return choose(warp_logits(scores.logits, sampling), sampling, torch.stack(noise))


def _with_logits(scores: Scores, parts: Sequence[Tensor]) -> Scores:
    """Scores with processed logits; the signals stay those of the model's own distribution."""
    logits = torch.cat([*parts])
    return Scores(logits, scores.signals, logits.argmax(-1))


class RequestState:
    """One request: `context` is prompt and output so far, `draft` that of the open step.

    `finish` is "eos", "length", "stop" or "failed"; None while the text goes on.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        budget: int,
        sampling: SamplingConfig,
        *,
        request: str,
        vocab_size: int,
        processors: Processors | None,
        stop: Stop | None = None,
        number: int = 0,
    ) -> None:
        self.request, self.number = request, number
        self.prompt_len, self.budget = len(prompt), budget
        self.context = list(prompt)
        self.draws = Draws(sampling, request=request, vocab_size=vocab_size, processors=processors, text=self.context)
        self.finish: str | None = None
        self.draft: Draft | None = None
        self._stop = stop

    @property
    def num_tokens(self) -> int:
        """Length of the output so far."""
        return len(self.context) - self.prompt_len

    @property
    def tokens(self) -> list[int]:
        """The output so far."""
        return self.context[self.prompt_len :]

    @property
    def tokens_left(self) -> int:
        """Tokens that the budget still allows."""
        return self.budget - self.num_tokens

    @property
    def open_draft(self) -> Draft:
        """The draft of the open step."""
        assert self.draft is not None
        return self.draft

    def begin_step(self, gamma: int, draft_context: int) -> None:
        """Opens a step."""
        self.draws.begin_step(self.num_tokens)
        limit = max(0, min(gamma, self.tokens_left - 1, draft_context + 1 - len(self.context)))
        self.draft = Draft(gamma=gamma, limit=limit)

    def unread(self, length: int) -> list[int]:
        """Tokens of text and draft on the host after the first `length`."""
        ahead = max(0, length - len(self.context))
        return self.context[length:] + self.open_draft.tokens[ahead:]

    def emit(self, tokens: Sequence[int], eos_token_ids: frozenset[int]) -> list[int]:
        """Appends tokens up to an end of text; returns those."""
        kept = up_to_end(tokens, eos_token_ids)
        for row in range(len(kept)):
            self.draws.commit(row)
            if self._stop is not None and self._stop(self.context + kept[: row + 1]):
                self.finish, kept = "stop", kept[: row + 1]
                break
        self.context += kept
        if kept[-1] in eos_token_ids:
            self.finish = "eos"
        elif self.finish is None and self.tokens_left == 0:
            self.finish = "length"
        return kept

    def close_step(
        self,
        num_kept: int,
        tokens: Sequence[int],
        target_signals: FloatArray,
        *,
        draft_s: float,
        first_draft_s: float,
        verify_s: float,
    ) -> DecodeStep:
        """Closes the open step; `num_kept` may exceed the emitted tokens.

        `target_signals` has shape [num_emitted or more, 3]; `verify_s` is all time but drafting.
        """
        draft, self.draft = self.open_draft, None
        num_accepted, found = min(num_kept, len(tokens)), target_signals[: len(tokens)]
        outcome = StepOutcome(
            gamma=draft.gamma,
            num_drafted=len(draft.tokens),
            num_accepted=num_accepted,
            num_tested=min(num_accepted + 1, len(draft.tokens)),
            num_emitted=len(tokens),
            draft_signals=draft.signals,
            target_entropy=float(found[-1, 0]),
            target_confidence=float(found[-1, 1]),
            seconds=draft_s + verify_s,
            draft_s=draft_s,
            first_draft_s=first_draft_s,
            verify_s=verify_s,
            finish=self.finish,
        )
        return DecodeStep(tokens=tuple(tokens), drafted=tuple(draft.tokens), target_signals=found, outcome=outcome)


def token_budget(prompt: Sequence[int], max_new_tokens: int, limit: int, *, expected: str = "Expected") -> int:
    """`max_new_tokens`, or with a warning fewer, if a context of `limit` tokens ends before.

    The newest token needs no room in the context, so prompt and output may be one longer. BudgetError, beginning with
    `expected`, if the prompt is empty or too long, or the budget below 1.
    """
    if not prompt:
        raise BudgetError(
            f"{expected} a prompt of at least one token, got none. Give a beginning-of-text token at least."
        )
    if max_new_tokens < 1:
        raise BudgetError(f"{expected} max_new_tokens of at least 1, got {max_new_tokens}.")
    if len(prompt) > limit:
        raise BudgetError(f"{expected} a prompt of at most {limit} tokens, got {len(prompt)}. Shorten it.")
    room = limit + 1 - len(prompt)
    if room < max_new_tokens:
        logger.warning(
            "The text ends after %d tokens, not %d: the target's context holds %d tokens, and the prompt has %d.",
            room,
            max_new_tokens,
            limit,
            len(prompt),
        )
    return min(max_new_tokens, room)


def up_to_end(tokens: Sequence[int], eos_token_ids: frozenset[int]) -> list[int]:
    """Cuts tokens behind the first end of text.

    >>> up_to_end([4, 5, 2, 6], frozenset({2}))
    [4, 5, 2]
    """
    end = next((i for i, token in enumerate(tokens) if token in eos_token_ids), len(tokens))
    return list(tokens[: end + 1])


def to_host(signals: Sequence[Tensor], tokens: Sequence[Tensor]) -> FloatArray:
    """Signals [.., 3] and token ids [..] side by side: shape [rows, 4]. Waits for the device."""
    if not signals:
        return np.zeros((0, NUM_SIGNALS + 1), np.float32)
    # Ids are exact in float32 below 2**24.
    array: FloatArray = torch.cat([torch.cat([*signals]), torch.cat([*tokens])[:, None].float()], dim=1).cpu().numpy()
    return array
