# SPDX-License-Identifier: Apache-2.0
"""The rows of a batch: the interface of a model that decodes many requests, and the state of each request."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from speckv.decoding.sampling import SamplingConfig, request_seed
from speckv.decoding.step import token_budget, up_to_end
from speckv.models.processors import Processors
from speckv.models.transfer import token_tensor


class CachedRows(Protocol):
    """Token sequences inside one model, each of its own length; `speckv.models.RaggedRows` is the real one."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row."""

    def add(self, count: int) -> None:
        """Adds empty rows behind the others."""

    def remove(self, row: int) -> None:
        """Forgets a row; the last one takes its place."""

    def truncate(self, row: int, length: int) -> None:
        """Forgets every token of a row past `length`."""

    def extend(self, rows: Sequence[int], tokens: Tensor, counts: Sequence[int], *, last_only: bool = False) -> Tensor:
        """Appends the first `counts[i]` of `tokens[i]` to row `rows[i]`, in one pass.

        Returns logits after each of them, row after row without padding, or only after each row's last one.
        """


class BatchModel(Protocol):
    """A model that the batch engine can drive; `speckv.models.RaggedModel` is the real one."""

    @property
    def context_limit(self) -> int:
        """Longest sequence it takes, in tokens."""

    @property
    def vocab_size(self) -> int:
        """Tokens it scores."""

    @property
    def device(self) -> torch.device:
        """Where it takes tokens and gives logits."""

    def rows(self) -> CachedRows:
        """Starts with no rows."""


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """One request of a batch.

    Attributes:
        number: How many requests the engine was given before it.
        request: Names it; with the sampling seed it fixes every draw.
        prompt_len: In tokens.
        budget: Most tokens that it may emit.
        context: Prompt and output so far.
        seed: Of its noise.
        generator: Of its draws.
        finish: "eos", "length" or None while the text goes on.
        processors: Of scores; None where they are taken as they are.
    """

    number: int
    request: str
    prompt_len: int
    budget: int
    context: list[int]
    seed: int
    generator: torch.Generator
    finish: str | None = field(default=None)
    processors: Processors | None = None

    @staticmethod
    def begin(
        number: int, request: str, prompt: Sequence[int], max_new_tokens: int, limit: int, sampling: SamplingConfig
    ) -> "Row":
        """A request before its prefill.

        Args:
            number: See `Row`.
            request: See `Row`.
            prompt: At least one token id.
            max_new_tokens: Token budget, at least 1, the prefill's token included.
            limit: Longest context of the target, in tokens.
            sampling: How tokens are chosen.

        Raises:
            BudgetError: if the prompt is empty, or it and one token do not fit the context.
        """
        budget = token_budget(prompt, max_new_tokens, limit, expected=f"Request {request!r}: expected")
        seed = request_seed(sampling.seed, request)
        return Row(
            number=number,
            request=request,
            prompt_len=len(prompt),
            budget=budget,
            context=list(prompt),
            seed=seed,
            generator=torch.Generator().manual_seed(request_seed(seed, "draws")),
        )

    def draft_limit(self, gamma: int, draft_context: int) -> int:
        """Most tokens that a step may draft: gamma, the token budget and the draft's context bound it."""
        return max(0, min(gamma, self.tokens_left - 1, draft_context + 1 - len(self.context)))

    def ids(self, drafted: Tensor) -> Tensor:
        """Shape [1, tokens]; the text with drafted tokens of shape [drafted] behind it."""
        return torch.cat([token_tensor(self.context, drafted.device), drafted])[None]

    @property
    def num_tokens(self) -> int:
        """Tokens of the output so far."""
        return len(self.context) - self.prompt_len

    @property
    def tokens(self) -> list[int]:
        """The output so far."""
        return self.context[self.prompt_len :]

    @property
    def tokens_left(self) -> int:
        """Tokens that the budget still allows."""
        return self.budget - self.num_tokens

    def emit(self, tokens: Sequence[int], eos_token_ids: frozenset[int]) -> tuple[int, ...]:
        """Appends tokens up to an end of text, and returns those."""
        kept = up_to_end(tokens, eos_token_ids)
        self.context += kept
        if kept[-1] in eos_token_ids:
            self.finish = "eos"
        elif self.tokens_left == 0:
            self.finish = "length"
        return tuple(kept)


def padded(pieces: Sequence[Sequence[int]]) -> list[list[int]]:
    """Fills pieces up with zeros behind their ends.

    >>> padded([[1, 2], [3]])
    [[1, 2], [3, 0]]
    """
    width = max(map(len, pieces))
    return [[*piece, *[0] * (width - len(piece))] for piece in pieces]
