# SPDX-License-Identifier: Apache-2.0
"""Stopping criteria and logits processors of plain `generate` in transformers' assisted generation.

transformers' loop calls criteria once a block, so that a text can run past the token that meets one, and processors for
rejected tokens too. Here each criterion is called once for each emitted token, and each processor likewise.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteriaList
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StopStringCriteria,
)

from speckv.models.processors import Processors

STATELESS = frozenset({EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria, StopStringCriteria})
"""By exact type."""


def length_limit(criteria: Iterable[Any], generation_config: Any, prompt_len: int) -> int:
    """Length at which the text ends: that of the given `MaxLengthCriteria`, which replace transformers' own."""
    lengths = [int(criterion.max_length) for criterion in criteria if type(criterion) is MaxLengthCriteria]
    return max(min(lengths, default=int(generation_config.max_length)), prompt_len + 1)


def custom_criteria(criteria: Iterable[Any], generation_config: Any) -> list[Any]:
    """Criteria that transformers' loop does not serve exactly by itself: all but length, time and end of text."""
    return [criterion for criterion in criteria if not _is_in_loop(criterion, generation_config)]


def _is_in_loop(criterion: Any, generation_config: Any) -> bool:
    if type(criterion) is not EosTokenCriteria:
        return type(criterion) in (MaxLengthCriteria, MaxTimeCriteria)
    return eos_tokens(generation_config) == frozenset(criterion.eos_token_id.flatten().tolist())


def eos_tokens(generation_config: Any) -> frozenset[int]:
    """Tokens at which transformers' loop ends a text."""
    found = getattr(generation_config, "_eos_token_tensor", None)
    return frozenset() if found is None else frozenset(found.flatten().tolist())


class ExactCriteria(StoppingCriteriaList):
    """All criteria of one call of `generate`.

    Until `begin` is called, as in calls without a draft, it is transformers' list.
    """

    def __init__(self, criteria: Iterable[Any]) -> None:
        super().__init__(criteria)
        self._processors: Processors | None = None
        self._length = 0
        self.scores: Any = None

    def begin(self, processors: Processors, prompt_len: int, scores: Any) -> None:
        """Before the first token of an assisted generation.

        Args:
            processors: Whose state is brought past each emitted token.
            prompt_len: In tokens.
            scores: An empty tuple where scores are collected, else None.
        """
        self._processors, self._length, self.scores = processors, prompt_len, scores

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Calls the criteria for each token of a block in turn, up to one that meets them.

        Args:
            input_ids: Shape [1, tokens]; the text with the block.
            scores: One tensor for each new token of the text, or None.
            **kwargs: As transformers passes them.
        """
        if self._processors is None:
            return super().__call__(input_ids, scores, **kwargs)
        length = input_ids.shape[1]
        done = torch.zeros(1, dtype=torch.bool, device=input_ids.device)
        for row in range(length - self._length):
            behind = length - self._length - row - 1
            self._processors.commit_row(row)
            so_far = None if scores is None else scores[: len(scores) - behind]
            done = super().__call__(input_ids[:, : length - behind], so_far, **kwargs)
            if bool(done.all()):
                break
        self._length, self.scores = length, scores
        return done


class ExactBlocks(LogitsProcessor):
    """The one logits processor of the loop: processes the rows of each verification with copies of the user's.

    A block is cut behind the first drafted token that meets the user's criteria: transformers emits no tokens past
    `generation_config.max_length`, which is lowered for the rest of the block.

    Args:
        processors: Of the user; made with the custom criteria `beside`.
        criteria: None where there are no custom ones.
        generation_config: Of the call.
    """

    def __init__(self, processors: Processors, criteria: ExactCriteria | None, generation_config: Any) -> None:
        self._processors, self._criteria, self._config = processors, criteria, generation_config
        self._limit = generation_config.max_length
        self._start = 0
        self._probes = StoppingCriteriaList()
        self._rows: list[Tensor] = []

    def begin(self, length: int) -> None:
        """Before a verification.

        Args:
            length: Of the text without the draft, in tokens.
        """
        self._start, self._config.max_length = length, self._limit
        self._rows.clear()
        self._probes = StoppingCriteriaList(self._processors.begin_verify())

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Processes one row of a verification; rows come in order, and those behind a cut stay as they are.

        Args:
            input_ids: Shape [1, tokens]; the text with the drafted tokens before the row.
            scores: Shape [1, vocabulary].
        """
        length = input_ids.shape[1]
        if self._config.max_length < self._limit:
            return scores
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
