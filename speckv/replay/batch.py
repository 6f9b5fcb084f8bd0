# SPDX-License-Identifier: Apache-2.0
"""The replay itself: recordings as flat arrays, and slots that each run one recorded sequence, stepped together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speckv.cost import CompiledCost
from speckv.errors import ConfigError, CostTableError, TraceError, nearest
from speckv.observation import (
    DRAFT_FEATURES,
    DRAFT_SIGNALS,
    TESTED_FEATURES,
    History,
    StaticContext,
    StepBatch,
    observe,
    observe_draft,
    running_summary,
    summarise_draft,
    update_history,
)
from speckv.traces import NO_TOKEN, TraceSequence, TraceSet, accepted_lengths
from speckv.types import BITS_PER_WEIGHT, GAMMA_MAX, NUM_SIGNALS, BoolArray, FloatArray, IntArray

ACCEPTANCES = ("recorded", "rejection")
_CHUNK = 4096


class CompiledTraces:
    """Sequences laid end to end; output position `j` of sequence `s` lies at `offset[s] + j`.

    A TraceError refuses recordings that contradict themselves. Shapes: S sequences, P positions.

    Attributes:
        offset, length, prompt_len: Shape [S]; in tokens.
        accepted_length: Shape [P]; tokens accepted by the deepest draft from each position.
        eos_stop: Shape [P]; tokens drafted from there up to the first end of text or empty proposal; else gamma_max.
        accept_prob: Shape [P]; chance that rejection sampling accepts a token drafted there.
        target: Shape [P, 2]; the target's entropy and confidence.
    """

    def __init__(self, traces: TraceSet) -> None:
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
            raise TraceError(f"Expected recordings of gamma_max 1 to {GAMMA_MAX}, got {self.gamma_max}. Record again.")
        for sequence in sequences:
            _require_consistent(sequence, self.gamma_max)
        self.length = np.array([len(s.tokens) for s in sequences], np.int64)
        self.offset = np.cumsum(self.length) - self.length
        self.prompt_len = np.array([s.prompt_len for s in sequences], np.int64)
        self.ends_text = np.array([s.finish == "eos" for s in sequences], np.bool_)
        # One row more, for positions behind the last sequence.
        self.accepted_length = np.concatenate([*(s.accepted_length for s in sequences), [0]]).astype(np.int64)
        self.eos_stop = np.concatenate([*(s.eos_stop for s in sequences), [1]]).astype(np.int64)
        self.accept_prob = np.concatenate([s.accept_prob for s in sequences])
        self.target: FloatArray = np.concatenate([s.target_signals[:, :2] for s in sequences])

    def __len__(self) -> int:
        """Number of sequences, S."""
        return len(self.length)

    @cached_property
    def tested(self) -> FloatArray:
        """Shape [P * (gamma_max + 1), features]: `summarise_tested`, by `position * (gamma_max + 1) + num_tested`."""
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
        """Shape [P, gamma_max + 1, features]: `summarise_draft` for each start and depth.

        Behind a rejected token these are the draft's own proposals, and behind the recording's end zeros.
        """
        out = np.empty((len(self.accepted_length), self.gamma_max + 1, len(DRAFT_FEATURES)), np.float32)
        for sequence, start in zip(self.traces.sequences, self.offset, strict=True):
            out[start : start + len(sequence.tokens)] = summarise_draft(_draft_signals(sequence, self.gamma_max))
        out[-1] = summarise_draft(np.zeros((1, self.gamma_max, NUM_SIGNALS)))
        return out

    def redraw(self, sequence: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Draws anew which drafted tokens rejection sampling accepts: `accepted_length` and `eos_stop` of one sequence.

        Past the first rejection no end of text stops the draft, as its next token was never recorded. A deterministic
        draft is accepted exactly where it is right.
        """
        start, length = self.offset[sequence], int(self.length[sequence])
        recorded = self.traces.sequences[sequence]
        if np.array_equal(recorded.accept_prob, recorded.draft_tokens == recorded.tokens):
            everything = slice(start, start + length)
            return self.accepted_length[everything], self.eos_stop[everything]
        drawn = rng.random(length) < self.accept_prob[start : start + length]
        accepted = accepted_lengths(drawn, self.gamma_max).astype(np.int64)
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


def _require_consistent(sequence: TraceSequence, gamma_max: int) -> None:
    to_the_end = np.arange(len(sequence.tokens), 0, -1)
    accepted, stop = sequence.accepted_length, sequence.eos_stop
    proposes_nothing = sequence.draft_tokens == NO_TOKEN
    faults = {
        f"accepted lengths from 0 to {gamma_max}, none past the end": (accepted < 0)
        | (accepted > np.minimum(gamma_max, to_the_end)),
        f"stops from 0 to {gamma_max}, none before the accepted length": (stop < accepted) | (stop > gamma_max),
        "a draft to stop at once where it proposes nothing, and nowhere else": (stop < 1) != proposes_nothing,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayStep:
    """What one decode step of each slot did; arrays of shape [N], zero in slots that made none.

    `num_drafted` is gamma cut by the budget, by a drafted end of text, and where the draft proposes nothing.
    """

    num_drafted: IntArray
    num_accepted: IntArray
    num_tested: IntArray
    num_emitted: IntArray
    seconds: NDArray[np.float64]
    context: IntArray
    terminated: BoolArray
    truncated: BoolArray

    def take(self, rows: IntArray) -> "ReplayStep":
        """The step of some slots."""
        return ReplayStep(**{f.name: getattr(self, f.name)[rows] for f in fields(ReplayStep)})


class ReplayBatch:
    """Slots that replay recorded sequences; idle until `assign` and after the end of their sequence.

    Args:
        cost: Must cover the recordings' compressions (a CostTableError) and speculation lengths.
        acceptance: "recorded", or for sampled text "rejection" to draw acceptances anew for each episode.
        rng: Spawned into one generator a slot, so that no slot affects another.

    Attributes:
        sequence: Shape [N]; what each slot replays or replayed last, -1 at first.
        length: Shape [N]; output tokens of each slot's sequence within the budget; 1 in an idle slot.
    """

    def __init__(
        self,
        compiled: CompiledTraces,
        cost: CompiledCost,
        num_slots: int,
        *,
        budget: int | None = None,
        acceptance: str = "recorded",
        controller_s: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        if acceptance not in ACCEPTANCES:
            hint = nearest(acceptance, list(ACCEPTANCES))
            raise ConfigError(f"Expected acceptance to be one of {list(ACCEPTANCES)}, got {acceptance!r}.{hint}")
        if budget is not None and not 2 <= budget <= compiled.max_new_tokens:
            raise ConfigError(
                f"Expected a budget from 2 to the recording's {compiled.max_new_tokens} tokens, got {budget}."
            )
        if cost.gamma_max < compiled.gamma_max:
            raise ConfigError(
                f"Expected costs compiled for at least gamma_max {compiled.gamma_max}, got {cost.gamma_max}."
            )
        self.compiled, self.cost, self.num_slots = compiled, cost, num_slots
        self.budget = compiled.max_new_tokens if budget is None else budget
        self.acceptance = acceptance if compiled.is_sampled else "recorded"
        self.controller_s = controller_s
        self._generators = rng.spawn(num_slots) if rng is not None else None
        self._describe_sequences()
        self._make_slots()

    def _describe_sequences(self) -> None:
        compiled, cost = self.compiled, self.cost
        names = compiled.compressions
        missing = sorted(set(names) - set(cost.compressions))
        if missing:
            raise CostTableError(f"Expected costs compiled for {missing} as well, got {list(cost.compressions)}.")
        if unknown := sorted(set(names) - set(BITS_PER_WEIGHT)):
            raise TraceError(
                f"Expected compressions of {list(BITS_PER_WEIGHT)}, got recordings at {unknown}. "
                "Register them with speckv.models.register_compression."
            )
        self._comp_of = np.array([cost.compressions.index(name) for name in names], np.int64)
        self._bits_of = np.array([BITS_PER_WEIGHT[name] for name in names])
        self._length_of = np.minimum(compiled.length, self.budget)
        self._ends_of = compiled.ends_text & (compiled.length <= self.budget)
        # A recording that stopped short of the budget without an end of text had no more room than it used.
        self._limit_of = np.where(self._ends_of, self.budget, self._length_of)

    def _make_slots(self) -> None:
        n, compiled = self.num_slots, self.compiled
        self.sequence = np.full(n, -1, np.int64)
        self.comp_index = np.zeros(n, np.int64)
        self.prompt_len = np.zeros(n, np.int64)
        self._offset = np.zeros(n, np.int64)
        # Length 1 is the prefill's token alone: such a slot is idle.
        self.length = np.ones(n, np.int64)
        self._limit = np.ones(n, np.int64)
        self.ends_text = np.zeros(n, np.bool_)
        self._static = StaticContext(
            cost_ratio=np.zeros(n), bits_per_weight=np.zeros(n), budget=np.full(n, self.budget, np.int64)
        )
        self.history = History.start(n, 0.0, 1.0)
        self._accepted, self._stop = compiled.accepted_length, compiled.eos_stop
        # The recording's own tables are laid out by the sequences' offsets, so both names share one array.
        self._table_offset = self._offset
        if self.acceptance == "rejection":
            # Each slot owns a row of redrawn acceptances in place of the recording's.
            self._row_length = int(compiled.length.max()) + 1
            self._accepted = np.zeros(n * self._row_length, np.int64)
            self._stop = np.ones(n * self._row_length, np.int64)
            self._table_offset = np.arange(n) * self._row_length

    @property
    def running(self) -> BoolArray:
        """Shape [N]; slots whose sequence has not ended."""
        return self.history.emitted < self.length

    @property
    def playable(self) -> IntArray:
        """Indices of the sequences that are longer than the prefill's token."""
        return np.flatnonzero(self._length_of > 1)

    def assign(
        self,
        slots: ArrayLike,
        sequences: ArrayLike,
        generators: Sequence[np.random.Generator] | None = None,
        *,
        clocks: ArrayLike = 0,
    ) -> None:
        """Starts sequences, one a slot, right after their prefill.

        Args:
            generators: In place of those of `rng`, one a slot.
            clocks: Which of the cost tables each runs on.
        """
        rows, chosen = np.atleast_1d(np.asarray(slots, np.int64)), np.atleast_1d(np.asarray(sequences, np.int64))
        compiled = self.compiled
        comp = self._comp_of[chosen] + np.asarray(clocks) * len(self.cost.compressions)
        self.sequence[rows] = chosen
        self.comp_index[rows] = comp
        self.prompt_len[rows] = compiled.prompt_len[chosen]
        self._offset[rows] = offset = compiled.offset[chosen]
        self.length[rows] = self._length_of[chosen]
        self._limit[rows] = self._limit_of[chosen]
        self.ends_text[rows] = self._ends_of[chosen]
        self._static.cost_ratio[rows] = self.cost.cost_ratio[comp]
        self._static.bits_per_weight[rows] = self._bits_of[chosen]
        self.history.restart(rows, compiled.target[offset])
        if self.acceptance == "rejection":
            self._redraw(rows, chosen, generators)

    def _redraw(self, rows: IntArray, sequences: IntArray, generators: Sequence[np.random.Generator] | None) -> None:
        if generators is None:
            if self._generators is None:
                raise ConfigError("Expected a random generator for rejection acceptance, got none. Pass rng.")
            generators = [self._generators[row] for row in rows]
        for row, sequence, generator in zip(rows, sequences, generators, strict=True):
            accepted, stop = self.compiled.redraw(int(sequence), generator)
            start = row * self._row_length
            self._accepted[start : start + len(accepted)] = accepted
            self._stop[start : start + len(stop)] = stop

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Copies out what the slots' future depends on besides recordings, costs and generators."""
        arrays: dict[str, NDArray[Any]] = {"sequence": self.sequence.copy()}
        arrays |= {f"history.{f.name}": getattr(self.history, f.name).copy() for f in fields(History)}
        if self.acceptance == "rejection":
            arrays |= {"accepted": self._accepted.copy(), "stop": self._stop.copy()}
        return arrays

    def set_state(
        self, arrays: Mapping[str, NDArray[Any]], generators: Sequence[np.random.Generator] | None = None
    ) -> None:
        """Puts a copied state, with every slot assigned, back into as many slots on the same recordings."""
        self.assign(np.arange(self.num_slots), arrays["sequence"], generators)
        self.history = History(**{f.name: np.array(arrays[f"history.{f.name}"]) for f in fields(History)})
        if self.acceptance == "rejection":
            self._accepted[:] = arrays["accepted"]
            self._stop[:] = arrays["stop"]

    def observe(self) -> FloatArray:
        """Shape [N, features]; observations before the next step, meaningless in idle slots."""
        return observe(self.history, self._static)

    @cached_property
    def first_observations(self) -> FloatArray:
        """Shape [S, features]; observations before the first step of each sequence."""
        target = self.compiled.target[self.compiled.offset]
        static = StaticContext(
            cost_ratio=self.cost.cost_ratio[self._comp_of],
            bits_per_weight=self._bits_of,
            budget=np.full(len(target), self.budget, np.int64),
        )
        return observe(History.start(len(target), target[:, 0], target[:, 1]), static)

    def observe_draft(self, observations: FloatArray, depth: IntArray) -> FloatArray:
        """Adds the present step's first `depth` drafted tokens to `observe`'s; a ConfigError under "rejection"."""
        if self.acceptance == "rejection":
            raise ConfigError("Expected acceptance=recorded for decisions inside a step, got rejection.")
        return observe_draft(observations, self.compiled.drafts[self.places(self.history.emitted), depth])

    def draft_signals(self, position: IntArray) -> FloatArray:
        """Shape [N, gamma_max, 3]: the draft's signals at every depth of a step from `position` in each slot."""
        signals: FloatArray = self.compiled.drafts[self.places(position), 1:, DRAFT_SIGNALS]
        return signals

    def places(self, position: IntArray) -> IntArray:
        """Shape [N]; rows of the recordings' flat arrays for a position in each slot."""
        places: IntArray = self._offset + np.minimum(position, self.length)
        return places

    def draft_limits(self, position: IntArray) -> tuple[IntArray, IntArray]:
        """Most tokens of a draft from `position` in each slot, below 1 where none fits, and its accepted length."""
        place = self._table_offset + position
        return np.minimum(self._limit - 1 - position, self._stop[place]), self._accepted[place]

    def step_seconds(self, num_drafted: IntArray) -> NDArray[np.float64]:
        """Shape [N]; seconds of each slot's next step if it drafts that many tokens, decisions left out."""
        context = self.prompt_len + self.history.emitted
        seconds = self.cost.step_seconds(self.comp_index, num_drafted, self.history.draft_lag, context)
        if self.cost.reads_prompt_late:
            seconds += self._late_prompt_seconds() * (num_drafted > 0)
        return seconds

    def draft_pass_seconds(self, depth: IntArray) -> NDArray[np.float64]:
        """Shape [N]; seconds of the draft pass that follows `depth` tokens drafted in the present step."""
        first = depth == 0
        lag = np.where(first, self.history.draft_lag, 0)
        seconds = self.cost.first_pass_seconds(self.comp_index, lag, self.prompt_len + self.history.emitted)
        if self.cost.reads_prompt_late:
            seconds += self._late_prompt_seconds() * first
        return seconds

    def _late_prompt_seconds(self) -> NDArray[np.float64]:
        # Nothing was drafted yet where the draft lags behind by all that was emitted.
        never_drafted = self.history.draft_lag == self.history.emitted - 1
        seconds: NDArray[np.float64] = self.cost.prompt_seconds(self.comp_index, self.prompt_len) * never_drafted
        return seconds

    def step(self, gammas: ArrayLike, where: BoolArray | None = None, num_decisions: IntArray | int = 1) -> ReplayStep:
        """Makes one decode step in each slot of the mask `where`; a ConfigError if one of them is idle.

        The recording's gamma_max bounds `gammas`. The step is charged `controller_s` for each of `num_decisions`.
        """
        gammas = self._checked_gammas(gammas)
        position = self.history.emitted
        idle = position >= self.length
        if (idle if where is None else idle & where).any():
            raise ConfigError("Expected running slots, got an idle one. Assign it a sequence before it steps again.")
        limit, accepted_length = self.draft_limits(position)
        num_drafted = np.minimum(gammas, limit)
        num_accepted = np.minimum(num_drafted, accepted_length)
        num_emitted = np.minimum(num_accepted + 1, self.length - position)
        context = self.prompt_len + position
        if where is not None:
            num_drafted, num_accepted, num_emitted = num_drafted * where, num_accepted * where, num_emitted * where
        num_tested = np.minimum(num_accepted + 1, num_drafted)
        seconds = self.step_seconds(num_drafted) + self.controller_s * num_decisions
        place = self._offset + position
        outcome = StepBatch(
            num_drafted=num_drafted,
            num_accepted=num_accepted,
            num_emitted=num_emitted,
            tested=self.compiled.tested[place * (self.compiled.gamma_max + 1) + num_tested],
            target=self.compiled.target[place + num_emitted - 1],
        )
        self.history = update_history(self.history, outcome, where)
        ended = self.history.emitted >= self.length
        if where is not None:
            seconds *= where
            ended &= where
        return ReplayStep(
            num_drafted=num_drafted,
            num_accepted=num_accepted,
            num_tested=num_tested,
            num_emitted=num_emitted,
            seconds=seconds,
            context=context,
            terminated=ended & self.ends_text,
            truncated=ended & ~self.ends_text,
        )

    def _checked_gammas(self, gammas: ArrayLike) -> IntArray:
        values = np.asarray(gammas)
        if values.shape != (self.num_slots,) or not np.issubdtype(values.dtype, np.integer):
            raise ConfigError(
                f"Expected {self.num_slots} whole speculation lengths, got shape {values.shape} of {values.dtype}."
            )
        if values.size and (values.min() < 0 or values.max() > self.compiled.gamma_max):
            raise ConfigError(
                f"Expected lengths from 0 to {self.compiled.gamma_max}, got {values.min()} to {values.max()}."
            )
        return values.astype(np.int64, copy=False)
