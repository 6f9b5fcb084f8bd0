# SPDX-License-Identifier: Apache-2.0
"""What a single request and a row of a batch share: token budgets, ends of text, the outcome of a step."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from speckv.errors import BudgetError
from speckv.types import FloatArray, StepOutcome

logger = logging.getLogger(__name__)


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

    @staticmethod
    def of(
        *,
        gamma: int,
        drafted: Sequence[int],
        draft_signals: FloatArray,
        num_kept: int,
        tokens: Sequence[int],
        target_signals: FloatArray,
        draft_s: float,
        verify_s: float,
        finish: str | None,
    ) -> "DecodeStep":
        """Counts a step.

        Args:
            gamma: Asked for, or where the draft was stopped.
            drafted: Drafted tokens.
            draft_signals: Shape [drafted, 3].
            num_kept: Drafted tokens that verification kept; those behind an end of text were not emitted.
            tokens: Emitted tokens, at least one.
            target_signals: Shape [num_emitted or more, 3]; what lies behind the emitted tokens is left out.
            draft_s: Seconds spent on the draft.
            verify_s: Seconds of the rest.
            finish: "eos", "length", "stop" (a criterion of the caller), or None while the text goes on.
        """
        num_accepted, found = min(num_kept, len(tokens)), target_signals[: len(tokens)]
        outcome = StepOutcome(
            gamma=gamma,
            num_drafted=len(drafted),
            num_accepted=num_accepted,
            num_tested=min(num_accepted + 1, len(drafted)),
            num_emitted=len(tokens),
            draft_signals=draft_signals,
            target_entropy=float(found[-1, 0]),
            target_confidence=float(found[-1, 1]),
            seconds=draft_s + verify_s,
            draft_s=draft_s,
            verify_s=verify_s,
            finish=finish,
        )
        return DecodeStep(tokens=tuple(tokens), drafted=tuple(drafted), target_signals=found, outcome=outcome)


def token_budget(prompt: Sequence[int], max_new_tokens: int, limit: int, *, expected: str = "Expected") -> int:
    """Tokens that a request may emit.

    Args:
        prompt: At least one token id.
        max_new_tokens: At least 1, the prefill's token included.
        limit: Longest context of the target, in tokens; the newest token needs no room in it, so prompt and output may
            be one longer. A budget that does not fit is cut, with a warning in the log.
        expected: How an error begins.

    Raises:
        BudgetError: if the prompt is empty, or it and one token do not fit the context.
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
