# SPDX-License-Identifier: Apache-2.0
"""transformers' logits processors in speculative decoding, those that keep state from call to call among them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process as known

from speckv.errors import ConfigError
from speckv.models.copies import Copier

LogitsProcessorLike = Callable[..., Any]
"""Called with the ids of a text, of shape [1, tokens], and scores of shape [1, vocabulary]; returns scores."""

ROW_WISE: frozenset[type] = frozenset(
    {
        known.EpsilonLogitsWarper,
        known.InfNanRemoveLogitsProcessor,
        known.LogitNormalization,
        known.MinPLogitsWarper,
        known.SuppressTokensLogitsProcessor,
        known.TemperatureLogitsWarper,
        known.TopKLogitsWarper,
    }
)
"""Neither read the text nor keep state, so that all rows of a verification are processed in one call."""

STATELESS: frozenset[type] = ROW_WISE | {
    known.EncoderNoRepeatNGramLogitsProcessor,
    known.EncoderRepetitionPenaltyLogitsProcessor,
    known.EtaLogitsWarper,
    known.ExponentialDecayLengthPenalty,
    known.ForcedBOSTokenLogitsProcessor,
    known.ForcedEOSTokenLogitsProcessor,
    known.MinLengthLogitsProcessor,
    known.MinNewTokensLengthLogitsProcessor,
    known.NoBadWordsLogitsProcessor,
    known.NoRepeatNGramLogitsProcessor,
    known.PrefixConstrainedLogitsProcessor,
    known.RepetitionPenaltyLogitsProcessor,
    known.SequenceBiasLogitsProcessor,
    known.SuppressTokensAtBeginLogitsProcessor,
    known.TopHLogitsWarper,
    known.TopPLogitsWarper,
    known.TypicalLogitsWarper,
    known.WatermarkLogitsProcessor,  # seeds its generator anew from the text at each call
}
"""Scores depend on the text and the given scores alone. For `prefix_allowed_tokens_fn` this is assumed."""


class Processors:
    """Logits processors along a speculative text.

    Each processor is called once for every emitted token and in the order of the text, as plain `generate` calls it.
    Drafts and verifications use copies of it, so that rejected tokens leave its state as it was. Nothing is copied
    where no processor keeps state.

    Args:
        processors: In the order in which they apply.
        beside: Objects that may share state with the processors, such as stopping criteria; copied with them.
        stateless: Classes among `beside` that keep no state, by exact type.

    Attributes:
        stateful: Whether a processor keeps state.

    Raises:
        ConfigError: for classifier-free guidance, and for a processor that cannot be deep-copied.
    """

    def __init__(
        self,
        processors: Sequence[LogitsProcessorLike],
        *,
        beside: Sequence[object] = (),
        stateless: Iterable[type] = (),
    ) -> None:
        self._live = LogitsProcessorList(_flat(processors))
        require_no_guidance(self._live)
        self._copier = Copier([*self._live, *beside], STATELESS.union(stateless))
        self.stateful = any(self._copier.copied[: len(self._live)])
        self._drafting = self._verifying = self._live
        self._rows: list[tuple[Tensor, Tensor]] = []

    @staticmethod
    def of(processors: Sequence[LogitsProcessorLike]) -> "Processors | None":
        """The processors, or None where there are none."""
        return Processors(processors) if len(processors) else None

    def begin_draft(self) -> None:
        """Before the first drafted token: the draft continues from the state after the emitted text."""
        if self.stateful:
            self._drafting = LogitsProcessorList(self._copier.copies(len(self._live)))

    def draft(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Processes the draft's scores of one position; positions come in the order of the text.

        Args:
            ids: Shape [1, tokens]; the text with what was drafted.
            scores: Shape [1, vocabulary], float32; not modified.
        """
        return _process(self._drafting, ids, scores)

    def verify(self, prefix: Tensor, drafted: Tensor, scores: Tensor) -> Tensor:
        """Processes the target's scores of all positions of a step.

        Args:
            prefix: Shape [1, tokens]; the emitted text.
            drafted: Shape [drafted].
            scores: Shape [drafted + 1, vocabulary], float32; row i follows `drafted[:i]`; not modified.

        Returns:
            Shape [drafted + 1, vocabulary].
        """
        text = torch.cat([prefix, drafted[None].to(prefix)], dim=1)
        if all(type(processor) in ROW_WISE for processor in self._live):
            return _process(self._live, text, scores)
        self.begin_verify()
        lengths = range(prefix.shape[1], text.shape[1] + 1)
        rows = [self.verify_row(text[:, :length], scores[i : i + 1]) for i, length in enumerate(lengths)]
        return torch.cat(rows)

    def begin_verify(self) -> list[object]:
        """Before the first row of a step that is verified row by row. Returns copies of `beside` for the same step."""
        self._rows.clear()
        copies = self._copier.copies()
        self._verifying = LogitsProcessorList(copies[: len(self._live)])
        return copies[len(self._live) :]

    def verify_row(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Processes the target's scores of the next position of a step.

        Args:
            ids: Shape [1, tokens]; the text with what was drafted before the position.
            scores: Shape [1, vocabulary], float32; not modified.
        """
        if self.stateful:
            self._rows.append((ids, scores.clone()))
        return _process(self._verifying, ids, scores)

    def commit(self, num_emitted: int) -> None:
        """After a verification: the state becomes that after so many rows of it."""
        for row in range(num_emitted):
            self.commit_row(row)

    def commit_row(self, row: int) -> None:
        """Brings the processors themselves past one row of the last verification; rows come in order."""
        if self.stateful:
            _process(self._live, *self._rows[row])


def require_no_guidance(processors: Iterable[LogitsProcessorLike]) -> None:
    """Passes if no processor runs a model of its own at each token.

    Raises:
        ConfigError: for classifier-free guidance.
    """
    for processor in processors:
        if isinstance(processor, known.UnbatchedClassifierFreeGuidanceLogitsProcessor):
            raise ConfigError(
                "Expected generate without classifier-free guidance, got guidance_scale="
                f"{processor.guidance_scale}. It runs the target once more for each token, one token after the other, "
                "and so cannot verify a draft. Leave guidance_scale out, or use plain generate."
            )


def _process(processors: LogitsProcessorList, ids: Tensor, scores: Tensor) -> Tensor:
    """Scores as processed; a processor that changes its argument in place changes a copy."""
    own = all(type(processor) in STATELESS for processor in processors)
    processed: Tensor = processors(ids, scores if own else scores.clone())  # type: ignore[arg-type]
    return processed


def _flat(processors: Iterable[LogitsProcessorLike]) -> Iterable[LogitsProcessorLike]:
    for processor in processors:
        if isinstance(processor, LogitsProcessorList):
            yield from _flat(processor)
        else:
            yield processor
