# SPDX-License-Identifier: Apache-2.0
"""Drafting in transformers' assisted generation: as many tokens as a policy chooses, by the draft's `forward`.

transformers' loop calls stopping criteria once a block, and logits processors for rejected tokens too. Here both are
called once for each emitted token.
"""

import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteriaList
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StopStringCriteria,
)

from speckv.models.causal import CausalModel
from speckv.models.processors import Processors
from speckv.models.signals import signals
from speckv.runtime.policy import Policy
from speckv.runtime.session import Session

STATELESS = frozenset({EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria, StopStringCriteria})
"""Exact types of criteria that keep no state."""


def length_limit(criteria: Iterable[Any], generation_config: Any, prompt_len: int) -> int:
    """Length at which the text ends; the caller's `MaxLengthCriteria` replace transformers' own."""
    lengths = [int(criterion.max_length) for criterion in criteria if type(criterion) is MaxLengthCriteria]
    return max(min(lengths, default=int(generation_config.max_length)), prompt_len + 1)


def custom_criteria(criteria: Iterable[Any], generation_config: Any) -> list[Any]:
    """Criteria that transformers' loop does not apply exactly: all but length, time and end of text."""
    return [criterion for criterion in criteria if not _is_in_loop(criterion, generation_config)]


def _is_in_loop(criterion: Any, generation_config: Any) -> bool:
    if type(criterion) is not EosTokenCriteria:
        return type(criterion) in (MaxLengthCriteria, MaxTimeCriteria)
    return eos_tokens(generation_config) == frozenset(criterion.eos_token_id.flatten().tolist())


def eos_tokens(generation_config: Any) -> frozenset[int]:
    """Tokens that end a text in transformers' loop."""
    found = getattr(generation_config, "_eos_token_tensor", None)
    return frozenset() if found is None else frozenset(found.flatten().tolist())


class ExactCriteria(StoppingCriteriaList):
    """The criteria of one `generate` call, called for each token; before `begin`, transformers' own list."""

    def __init__(self, criteria: Iterable[Any]) -> None:
        super().__init__(criteria)
        self._processors: Processors | None = None
        self._length = 0
        self.scores: Any = None

    def begin(self, processors: Processors, prompt_len: int, scores: Any) -> None:
        """Begins assisted generation; `scores` is () if they are collected, else None."""
        self._processors, self._length, self.scores = processors, prompt_len, scores

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Calls the criteria for each token of the newest block, up to one that meets them."""
        if self._processors is None:
            return super().__call__(input_ids, scores, **kwargs)
        length = input_ids.shape[1]
        done = torch.zeros(1, dtype=torch.bool, device=input_ids.device)
        for row in range(length - self._length):
            later = length - self._length - row - 1
            self._processors.commit_row(row)
            so_far = None if scores is None else scores[: len(scores) - later]
            done = super().__call__(input_ids[:, : length - later], so_far, **kwargs)
            if bool(done.all()):
                break
        self._length, self.scores = length, scores
        return done


class ExactBlocks(LogitsProcessor):
    """Replaces the loop's logits processors: processes the rows of each verification with copies of the user's.

    A block is cut after the first drafted token that meets the user's criteria, by lowering
    `generation_config.max_length` for the rest of the block.
    """

    def __init__(self, processors: Processors, criteria: ExactCriteria | None, generation_config: Any) -> None:
        self._processors, self._criteria, self._config = processors, criteria, generation_config
        self._limit = generation_config.max_length
        self._start = 0
        self._probes = StoppingCriteriaList()
        self._rows: list[Tensor] = []

    def begin(self, length: int) -> None:
        """Begins a verification; `length` excludes the draft."""
        self._start, self._config.max_length = length, self._limit
        self._rows.clear()
        self._probes = StoppingCriteriaList(self._processors.begin_verify())

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Processes one row of a verification, in order; `input_ids` ends with the drafted tokens before it."""
        length = input_ids.shape[1]
        if self._config.max_length < self._limit:
            return scores  # after a cut
        if length > self._start and self._is_met(input_ids):
            self._config.max_length = length
            return scores
        processed = self._processors.verify_row(input_ids, scores)
        self._rows.append(processed)
        return processed

    def _is_met(self, text: Any) -> bool:
        if self._criteria is None:
            return False
        before = self._criteria.scores
        return bool(self._probes(text, None if before is None else (*before, *self._rows)).all())


_LEARNING = threading.RLock()


def exclusive(policy: Policy) -> AbstractContextManager[object]:
    """A lock around each use of a policy that learns, as its sessions in several threads share one learner."""
    return _LEARNING if policy.learns else nullcontext()


class PolicyCandidates(CandidateGenerator):
    """Drafts as many tokens as a policy chooses, for one call of `generate`.

    If the user's processors keep state, or there are criteria other than length, time and end of text, the content of
    `logits_processor` is replaced in place by one `ExactBlocks`. `generation_config.max_length` is changed. `draft`
    scores the target's vocabulary; `session` holds options of the policy's session, without its budget.
    """

    def __init__(
        self,
        draft: CausalModel,
        policy: Policy,
        *,
        generation_config: Any,
        logits_processor: Any,
        criteria: Any,
        prompt_len: int,
        session: dict[str, Any],
    ) -> None:
        self._draft, self._policy, self._options = DraftSequence(draft), policy, session
        self._do_sample, self._eos = bool(generation_config.do_sample), eos_tokens(generation_config)
        generation_config.max_length = length_limit(criteria, generation_config, prompt_len)
        self._max_length = int(generation_config.max_length)
        custom = custom_criteria(criteria, generation_config)
        self._processors = Processors(logits_processor, beside=custom, stateless=STATELESS)
        self._criteria = criteria if custom and isinstance(criteria, ExactCriteria) else None
        self._blocks: ExactBlocks | None = None
        if custom or self._processors.stateful:
            self._blocks = ExactBlocks(self._processors, self._criteria, generation_config)
            logits_processor[:] = [self._blocks]
        if self._criteria is not None:
            collects = generation_config.return_dict_in_generate and generation_config.output_scores
            self._criteria.begin(self._processors, prompt_len, () if collects else None)
        self._session: Session | None = None
        self._num_drafted = 0

    def get_candidates(  # type: ignore[override]
        self, input_ids: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Text with draft, and the scores of its tokens [1, drafted, vocabulary]."""
        self._num_drafted = 0
        text, chosen_from = input_ids, list[Tensor]()
        if self._session is not None:  # otherwise the target reads the prompt first
            with exclusive(self._policy):
                gamma = self._session.begin_step()
            gamma = min(gamma, self._draft.room(input_ids.shape[1]))
            text, chosen_from = self._drafted(self._session, input_ids, gamma)
            self._num_drafted = len(chosen_from)
        if self._blocks is not None:
            self._blocks.begin(input_ids.shape[1])
        if not chosen_from:
            return input_ids, None
        return text.to(input_ids.device), torch.stack(chosen_from, dim=1).to(input_ids.device)

    def _drafted(self, session: Session, input_ids: Tensor, gamma: int) -> tuple[Tensor, list[Tensor]]:
        text, chosen_from = input_ids.to(self._draft.device), list[Tensor]()
        more = gamma > 0
        if more:
            self._processors.begin_draft()
        while more:
            logits = self._draft.after(text)
            scores = self._processors.draft(text, logits.float())
            token = scores.softmax(-1).multinomial(1) if self._do_sample else scores.argmax(-1, keepdim=True)
            text = torch.cat([text, token.to(text.dtype)], dim=1)
            chosen_from.append(scores)
            entropy, confidence, margin = signals(logits)[0].tolist()
            with exclusive(self._policy):
                more = session.go_on(entropy, confidence, margin)
            more = more and len(chosen_from) < gamma and int(token) not in self._eos
        return text, chosen_from

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """Reports a step's outcome to the policy; `scores` are the target's, [1, drafted + 1, vocabulary]."""
        kept = int(num_matches)
        if self._criteria is None:
            self._processors.commit(kept + 1)
        entropy, confidence, _ = signals(scores[0, kept : kept + 1])[0].tolist()
        with exclusive(self._policy):
            if self._session is None:
                budget = self._max_length - input_ids.shape[1] + 1
                self._session = self._policy.session(max_new_tokens=budget, **self._options)
                self._session.start(entropy, confidence)
            else:
                self._session.end_step(kept, entropy, confidence, num_drafted=self._num_drafted)


class DraftSequence:
    """A draft with its cache; each call passes the whole text."""

    def __init__(self, draft: CausalModel) -> None:
        self._model, self.device = draft, draft.device
        self._sequence = draft.sequence()
        self._read: Tensor | None = None

    def room(self, length: int) -> int:
        """Tokens that can be drafted after `length` tokens."""
        return max(0, self._model.context_limit - length)

    def after(self, text: Tensor) -> Tensor:
        """Scores of the next token [1, vocabulary] after a text [1, tokens]."""
        same = self._common(text)
        self._sequence.truncate(same)
        logits = self._sequence.extend(text[0, same:], num_logits=1)
        self._read = text
        return logits

    def _common(self, text: Tensor) -> int:
        """Length of the common prefix of cache and text, without the newest token."""
        if self._read is None:
            return 0
        shorter = min(self._read.shape[1], text.shape[1] - 1)
        differs = (self._read[0, :shorter] != text[0, :shorter]).nonzero()
        return int(differs[0]) if len(differs) else shorter
