# SPDX-License-Identifier: Apache-2.0
"""A trace set as flat arrays, ready for gathers over many sequences."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from speckv.errors import TraceError
from speckv.observation import DRAFT_FEATURES, TESTED_FEATURES, running_summary, summarise_draft
from speckv.traces import NO_TOKEN, TraceSequence, TraceSet
from speckv.types import GAMMA_MAX, NUM_SIGNALS, FloatArray, IntArray

_CHUNK = 4096


class CompiledTraces:
    """Sequences laid end to end; output position `j` of sequence `s` lies at `offset[s] + j`.

    Attributes:
        traces: What was compiled.
        gamma_max: Deepest recorded draft.
        max_new_tokens: Token budget of the recording.
        is_sampled: Whether the text was drawn at a temperature above zero.
        prompt_ids: One a sequence.
        tasks: One a sequence.
        compressions: One a sequence.
        compression_names: Distinct compressions, in order of first appearance.
        offset: Shape [S]; where each sequence starts.
        length: Shape [S]; its output tokens.
        prompt_len: Shape [S]; its prompt tokens.
        ends_text: Shape [S]; whether it ended with an end of text, not by the budget.
        accepted_length: Shape [P]; tokens accepted by the deepest draft from each position.
        eos_stop: Shape [P]; tokens drafted from each position up to the first end of text, or until the draft has
            nothing to propose; else gamma_max.
        accept_prob: Shape [P]; chance that rejection sampling accepts a token drafted there.
        target: Shape [P, 2]; the target's entropy and confidence.
    """

    def __init__(self, traces: TraceSet) -> None:
        """Copies the recordings into flat arrays.

        Raises:
            TraceError: if a recording contradicts itself.
        """
        sequences = traces.sequences
        self.traces = traces
        self.gamma_max = traces.metadata.gamma_max
        self.max_new_tokens = traces.metadata.max_new_tokens
        self.is_sampled = traces.metadata.is_sampled
        self.prompt_ids = tuple(s.prompt_id for s in sequences)
        self.tasks = tuple(s.task for s in sequences)
        self.compressions = tuple(s.compression for s in sequences)
        self.compression_names = traces.compressions
        if not 1 <= self.gamma_max <= GAMMA_MAX:
            raise TraceError(
                f"Expected recordings of gamma_max 1 to {GAMMA_MAX}, got {self.gamma_max}. Record them again."
            )
        for sequence in sequences:
            _check(sequence, self.gamma_max)
        self.length = np.array([len(s.tokens) for s in sequences], np.int64)
        self.offset = np.cumsum(self.length) - self.length
        self.prompt_len = np.array([s.prompt_len for s in sequences], np.int64)
        self.ends_text = np.array([s.finish == "eos" for s in sequences], np.bool_)
        # One row more, so that a finished sequence still points at something.
        self.accepted_length = np.concatenate([*(s.accepted_length for s in sequences), [0]]).astype(np.int64)
        self.eos_stop = np.concatenate([*(s.eos_stop for s in sequences), [1]]).astype(np.int64)
        self.accept_prob = np.concatenate([s.accept_prob for s in sequences])
        self.target: FloatArray = np.concatenate([s.target_signals[:, :2] for s in sequences])

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.length)

    @cached_property
    def tested(self) -> FloatArray:
        """Shape [P * (gamma_max + 1), 6]: `summarise_tested` for each position and number of tested tokens.

        Row `position * (gamma_max + 1) + num_tested`. About 400 bytes a position: made when first asked for.
        """
        depth, columns = self.gamma_max + 1, len(TESTED_FEATURES)
        signals = np.concatenate([s.draft_signals for s in self.traces.sequences])
        padded = np.concatenate([signals, np.zeros((self.gamma_max, signals.shape[1]), np.float32)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.gamma_max, axis=0).swapaxes(1, 2)
        out = np.empty((len(signals) + 1, depth, columns), np.float32)
        for start in range(0, len(out), _CHUNK):
            out[start : start + _CHUNK] = running_summary(windows[start : start + _CHUNK])
        return out.reshape(-1, columns)

    @cached_property
    def drafts(self) -> FloatArray:
        """Shape [P, gamma_max + 1, 8]: `summarise_draft` for each position a draft may start at and each of its depths.

        What the draft would really have proposed, its own words behind a rejected token included. Zeros stand behind
        the recording's end, where nothing is ever drafted. About 540 bytes a position: made when first asked for.
        """
        out = np.empty((len(self.accepted_length), self.gamma_max + 1, len(DRAFT_FEATURES)), np.float32)
        for sequence, start in zip(self.traces.sequences, self.offset, strict=True):
            out[start : start + len(sequence.tokens)] = summarise_draft(_draft_signals(sequence, self.gamma_max))
        out[-1] = summarise_draft(np.zeros((1, self.gamma_max, NUM_SIGNALS)))
        return out

    def redraw(self, sequence: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Draws anew which drafted tokens rejection sampling accepts; the text stays.

        Past the first rejection the draft reads a token of its own that was never recorded, so drafting stops there
        for no end of text. A draft that draws nothing, such as a lookup, is accepted where it is right and nowhere
        else: there all is as recorded.

        Args:
            sequence: Index of the sequence.
            rng: Source of the draws, one a position.

        Returns:
            What `accepted_length` and `eos_stop` become, one row a position of the sequence.
        """
        start, length = self.offset[sequence], int(self.length[sequence])
        recorded = self.traces.sequences[sequence]
        if np.array_equal(recorded.accept_prob, recorded.draft_tokens == recorded.tokens):
            everything = slice(start, start + length)
            return self.accepted_length[everything], self.eos_stop[everything]
        accepted = run_lengths(rng.random(length) < self.accept_prob[start : start + length], self.gamma_max)
        to_the_end = np.arange(length, 0, -1)
        drafts_the_end = self.ends_text[sequence] & (accepted == to_the_end)
        return accepted, np.where(drafts_the_end, to_the_end, self.gamma_max)


def _draft_signals(sequence: TraceSequence, gamma_max: int) -> FloatArray:
    """Shape [n, gamma_max, 3]: the draft's signals at every depth of a step from every position."""
    length = len(sequence.tokens)
    place = np.arange(length)[:, None] + np.arange(gamma_max)
    last_read = np.arange(length) + sequence.accepted_length  # up to here the draft reads the emitted text
    depth_behind = place - last_read[:, None] - 1
    on_path = np.concatenate([sequence.draft_signals, np.zeros((gamma_max, NUM_SIGNALS), np.float32)])
    out: FloatArray = on_path[place]
    mismatch = np.minimum(last_read, length - 1)
    proposed = sequence.draft_tokens[mismatch]
    missed = (last_read < length) & (proposed != sequence.tokens[mismatch]) & (proposed != NO_TOKEN)
    rows, depths = np.nonzero((depth_behind >= 0) & missed[:, None])
    if len(rows):
        roll_out = np.searchsorted(sequence.rollout_start, mismatch[rows])
        out[rows, depths] = sequence.rollout_signals[roll_out, depth_behind[rows, depths]]
    return out


def run_lengths(matches: NDArray[np.bool_], limit: int) -> IntArray:
    """Number of consecutive matches from each position on, at most `limit`.

    >>> run_lengths(np.array([True, True, True, False, True]), 2).tolist()
    [2, 2, 1, 0, 1]
    """
    places = np.arange(len(matches))
    next_miss = np.minimum.accumulate(np.where(matches, len(matches), places)[::-1])[::-1]
    return np.minimum(next_miss - places, limit)


def _check(sequence: TraceSequence, gamma_max: int) -> None:
    to_the_end = np.arange(len(sequence.tokens), 0, -1)
    accepted, stop = sequence.accepted_length, sequence.eos_stop
    silent = sequence.draft_tokens == NO_TOKEN
    faults = {
        f"accepted lengths from 0 to {gamma_max}, none past the end": (accepted < 0)
        | (accepted > np.minimum(gamma_max, to_the_end)),
        f"stops from 0 to {gamma_max}, none before the accepted length": (stop < accepted) | (stop > gamma_max),
        "a draft to stop at once where it proposes nothing, and nowhere else": (stop < 1) != silent,
        "a draft to stop at the end of text that it got right": (sequence.finish == "eos")
        & (accepted == to_the_end)
        & (stop > to_the_end),
    }
    for expected, fault in faults.items():
        if np.any(fault):
            place = int(np.argmax(fault))
            raise TraceError(
                f"Sequence {sequence.key}: expected {expected}, got accepted length {accepted[place]} and stop "
                f"{stop[place]} at position {place} of {len(sequence.tokens)}. Record it again."
            )
