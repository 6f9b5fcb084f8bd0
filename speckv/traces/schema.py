# SPDX-License-Identifier: Apache-2.0
"""What one recorded sequence holds, and what it says about every possible step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from speckv.errors import TraceError
from speckv.types import GAMMA_MAX

SCHEMA_VERSION = 1
ROLLOUT_LENGTH = GAMMA_MAX - 1
NO_TOKEN = -1
"""Stands where a draft that may have nothing to propose proposes nothing."""

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceMetadata:
    """How a trace file came to be; travels inside it.

    Attributes:
        target_id: Hub id, folder or file name of the target.
        draft_id: The same of the draft, or the name of a lookup.
        target_sha256: Hash of the target's weights as loaded, or "" if unknown.
        draft_sha256: Hash of the draft's weights, "" where it has none.
        tokenizer_sha256: Hash of the shared vocabulary.
        vocab_size: Number of tokens both models score.
        dtype: Compression -> dtype of the target's arithmetic, e.g. {"fp16": "float32"}; "draft" -> the draft's, "none"
            for a lookup.
        sampling: mode ("greedy" or "gumbel"), temperature, top_k, top_p, seed; further keys are allowed.
        max_new_tokens: Token budget of every sequence, the prefill's token included.
        gamma_max: Deepest recorded draft.
        eos_token_ids: Tokens that end a text.
        chat_template: Whether prompts went through the target's chat template.
        device: Where it ran.
        versions: Package -> version.
        notes: Anything a reader must know.
        template_date: Local date and time that the chat template was rendered with, in ISO format; "" where it prints
            none, or in older files.
        context_limits: "target", "draft" -> longest sequence of the model, in tokens; empty in older files.
    """

    target_id: str
    draft_id: str
    target_sha256: str
    draft_sha256: str
    tokenizer_sha256: str
    vocab_size: int
    dtype: dict[str, str]
    sampling: dict[str, str | float | int]
    max_new_tokens: int
    eos_token_ids: list[int]
    chat_template: bool
    device: str
    versions: dict[str, str]
    notes: str = ""
    gamma_max: int = GAMMA_MAX
    schema_version: int = SCHEMA_VERSION
    template_date: str = ""
    context_limits: dict[str, int] = field(default_factory=dict)

    @property
    def is_sampled(self) -> bool:
        """Whether the text was drawn at a temperature above zero."""
        return self.sampling["mode"] != "greedy"

    @property
    def template_datetime(self) -> datetime | None:
        """The template's date, with which prompts encode as they were recorded."""
        return datetime.fromisoformat(self.template_date) if self.template_date else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSequence:
    """One prompt's output and the draft's proposal at each of its positions.

    Position `j` counts output tokens from 0; token 0 comes from the target's prefill. `n` is the output's length and
    `r` the number of positions where the draft proposes another token than the emitted one.

    Attributes:
        prompt_id: Id in the prompts file.
        task: Its task.
        split: Its split.
        compression: The target's compression.
        prompt_len: Prompt tokens, chat template included.
        finish: "eos" or "length".
        tokens: Shape [n].
        target_signals: Shape [n, 3]; row j describes the distribution that token j was emitted from.
        draft_tokens: Shape [n]; the draft's proposal for position j after the emitted tokens before it, `NO_TOKEN`
            where it has none.
        draft_signals: Shape [n, 3]; of the distribution of that proposal, zeros where there is none.
        accept_prob: Shape [n]; probability in [0, 1] that rejection sampling accepts a drafted token at j, given that
            token j is emitted there. Greedy: 1 where the proposal matches, else 0.
        accepted_length: Shape [n]; tokens accepted by a draft of gamma_max that starts at j.
        eos_stop: Shape [n]; tokens drafted from j up to and including the draft's first end of text, or up to where it
            has nothing to propose, which may be at once; else gamma_max.
        rollout_start: Shape [r]; positions where a wrong token is proposed, ascending.
        rollout_tokens: Shape [r, 15]; what the draft goes on to propose after its own wrong token, `NO_TOKEN` behind
            the last one.
        rollout_signals: Shape [r, 15, 3].
        prompt_tokens: Shape [prompt_len]; token ids of the prompt, chat template included. Empty in older files.
    """

    prompt_id: str
    task: str
    split: str
    compression: str
    prompt_len: int
    finish: str
    tokens: Int32
    target_signals: Float32
    draft_tokens: Int32
    draft_signals: Float32
    accept_prob: Float32
    accepted_length: NDArray[np.int8]
    eos_stop: NDArray[np.int8]
    rollout_start: NDArray[np.int16]
    rollout_tokens: Int32
    rollout_signals: Float32
    prompt_tokens: Int32 = field(default_factory=lambda: np.zeros(0, np.int32))

    @property
    def key(self) -> tuple[str, str]:
        """Identifies the sequence inside its file."""
        return self.compression, self.prompt_id

    def require_prompt(self, prompt_tokens: Sequence[int]) -> None:
        """Passes if a prompt is the recorded one: by token ids, or by length where the file holds no token ids.

        Args:
            prompt_tokens: Token ids, chat template included.

        Raises:
            TraceError: if it is another prompt.
        """
        advice = "Give the prompts file, tokenizer and chat template of the recording."
        if len(prompt_tokens) != self.prompt_len:
            raise TraceError(
                f"Expected prompt {self.prompt_id} to have {self.prompt_len} tokens as recorded, got "
                f"{len(prompt_tokens)}. {advice}"
            )
        if len(self.prompt_tokens) and not np.array_equal(self.prompt_tokens, prompt_tokens):
            first = int(np.argmax(self.prompt_tokens != np.asarray(prompt_tokens)))
            raise TraceError(
                f"Expected prompt {self.prompt_id} to have the recorded token ids, got others from token {first} on. "
                f"{advice}"
            )

    def draft_from(self, position: int, depth: int) -> tuple[Int32, Float32]:
        """What the draft proposes in a step that starts at `position`.

        Args:
            position: Output position of the first drafted token, in [0, n).
            depth: Number of tokens to draft, at most gamma_max; fewer come back where the recording or the draft ends.

        Returns:
            Token ids of shape [d] and signals of shape [d, 3], d <= depth.
        """
        end = len(self.tokens)
        on_path = min(position + int(self.accepted_length[position]) + 1, position + depth, end)
        tokens, signals = self.draft_tokens[position:on_path], self.draft_signals[position:on_path]
        mismatch = on_path - 1
        missing = depth - len(tokens)
        if missing > 0 and self.draft_tokens[mismatch] not in (self.tokens[mismatch], NO_TOKEN):
            row = int(np.searchsorted(self.rollout_start, mismatch))
            tokens = np.concatenate([tokens, self.rollout_tokens[row, :missing]])
            signals = np.concatenate([signals, self.rollout_signals[row, :missing]])
        drafted = int(np.argmax(tokens == NO_TOKEN)) if NO_TOKEN in tokens else len(tokens)
        return tokens[:drafted], signals[:drafted]


def round_mantissa(values: Float32, bits: int = 13) -> Float32:
    """Rounds to `bits` binary digits after the leading one, so that the file compresses.

    >>> float(round_mantissa(np.array([0.3], np.float32), bits=4)[0])
    0.296875
    """
    mantissa, exponent = np.frexp(values)
    scale = np.float32(2.0 ** (bits + 1))
    rounded: Float32 = np.ldexp(np.round(mantissa * scale) / scale, exponent).astype(np.float32)
    return rounded


def accepted_lengths(matches: NDArray[np.bool_], gamma_max: int = GAMMA_MAX) -> NDArray[np.int8]:
    """Run length of matches from each position, capped.

    >>> accepted_lengths(np.array([True, True, False, True]))
    array([2, 1, 0, 1], dtype=int8)
    """
    lengths = np.zeros(len(matches), np.int8)
    run = 0
    for j in range(len(matches) - 1, -1, -1):
        run = min(run + 1, gamma_max) if matches[j] else 0
        lengths[j] = run
    return lengths
