# SPDX-License-Identifier: Apache-2.0
"""What drafts in transformers' assisted generation: as many tokens as a policy chooses, by the draft's `forward`."""

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers.generation.candidate_generator import CandidateGenerator

from speckv.integrations.transformers.criteria import (
    STATELESS,
    ExactBlocks,
    ExactCriteria,
    custom_criteria,
    eos_tokens,
    length_limit,
)
from speckv.models.causal import CausalModel
from speckv.models.processors import Processors
from speckv.models.signals import signals
from speckv.runtime.policy import Policy
from speckv.runtime.session import Session

_LEARNING = threading.RLock()


def exclusive(policy: Policy) -> AbstractContextManager[object]:
    """Held around each use of a policy that learns, because its sessions in several threads share what it learns."""
    return _LEARNING if policy.learns else nullcontext()


class PolicyCandidates(CandidateGenerator):
    """Drafts as many tokens as a policy chooses, for one call of `generate`.

    Where the user's processors keep state, or criteria other than length, time and end of text are given, the content
    of `logits_processor` is replaced by one `ExactBlocks`. Otherwise the loop stays as it is.

    Args:
        draft: Scores the target's tokens.
        policy: Chooses.
        generation_config: Of the call, as `generate` prepared it; its `max_length` is changed.
        logits_processor: Of the target, applied to the draft's scores too; changed in place.
        criteria: All stopping criteria of the call.
        prompt_len: In tokens.
        session: Options of the policy's session, without its budget.

    Raises:
        ConfigError: for processors or criteria that cannot be served.
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
        self._shown: list[tuple[float, float, float]] = []

    def get_candidates(  # type: ignore[override]
        self, input_ids: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Drafts behind a text.

        Args:
            input_ids: Shape [1, tokens].

        Returns:
            The text with the draft behind it, of shape [1, tokens + drafted], and the processed scores that each
            drafted token was chosen from, of shape [1, drafted, vocabulary]; None where nothing was drafted.
        """
        self._shown.clear()
        text, chosen_from = input_ids, list[Tensor]()
        if self._session is not None:  # otherwise the target reads the prompt first
            with exclusive(self._policy):
                gamma = self._session.begin_step()
            text, chosen_from = self._drafted(input_ids, min(gamma, self._draft.room(input_ids.shape[1])))
        if self._blocks is not None:
            self._blocks.begin(input_ids.shape[1])
        if not chosen_from:
            return input_ids, None
        return text.to(input_ids.device), torch.stack(chosen_from, dim=1).to(input_ids.device)

    def _drafted(self, input_ids: Tensor, gamma: int) -> tuple[Tensor, list[Tensor]]:
        assert self._session is not None
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
            self._shown.append((entropy, confidence, margin))
            with exclusive(self._policy):
                more = self._session.go_on(entropy, confidence, margin)
            more = more and len(chosen_from) < gamma and int(token) not in self._eos
        return text, chosen_from

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """Passes a step's outcome to the policy.

        Args:
            input_ids: Shape [1, tokens]; the text after the step.
            scores: Shape [1, drafted + 1, vocabulary]; the target's processed scores.
            num_matches: Drafted tokens that were kept.
        """
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
                self._session.end_step(kept, entropy, confidence, num_drafted=len(self._shown))


class DraftSequence:
    """What a draft has read, with its cache; given the whole text each time, it reads what is new.

    Args:
        draft: The model.
    """

    def __init__(self, draft: CausalModel) -> None:
        self._model, self.device = draft, draft.device
        self._sequence = self._model.sequence()
        self._read: Tensor | None = None

    def room(self, length: int) -> int:
        """Tokens that can be drafted behind a text of that length before the draft's context is full."""
        return max(0, self._model.context_limit - length)

    def after(self, text: Tensor) -> Tensor:
        """Scores of the token that follows.

        Args:
            text: Shape [1, tokens].

        Returns:
            Shape [1, vocabulary].
        """
        same = self._common(text)
        self._sequence.truncate(same)
        logits = self._sequence.extend(text[0, same:], num_logits=1)
        self._read = text
        return logits

    def _common(self, text: Tensor) -> int:
        """Tokens that the cache may keep: what was read and is still there, the newest one always read anew."""
        if self._read is None:
            return 0
        shorter = min(self._read.shape[1], text.shape[1] - 1)
        differs = (self._read[0, :shorter] != text[0, :shorter]).nonzero()
        return int(differs[0]) if len(differs) else shorter
