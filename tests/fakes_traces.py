# SPDX-License-Identifier: Apache-2.0
"""Recordings and costs made of random numbers: every rule of the format holds, nothing means anything."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speckv.cost import CompiledCost, CostEntry, CostTable
from speckv.replay import CompiledTraces, ReplayBatch
from speckv.traces import ROLLOUT_LENGTH, TraceMetadata, TraceSequence, TraceSet, accepted_lengths
from speckv.types import GAMMA_MAX, StepOutcome

EOS = 1
VOCAB_SIZE = 50


def make_signals(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Returns random entropy, confidence and margin along a last axis of 3."""
    signals = rng.random((*shape, 3))
    signals[..., 0] *= 4.0
    signals[..., 2] *= signals[..., 1]
    return signals.astype(np.float32)


def make_sequence(
    matches: Iterable[int],
    *,
    finish: str = "length",
    eos_drafts: Sequence[int] = (),
    rollout_eos_rate: float = 0.0,
    prompt_len: int = 10,
    compression: str = "fp16",
    prompt_id: str = "p0",
    task: str = "code",
    split: str = "train",
    accept_prob: NDArray[np.float32] | None = None,
    seed: int = 0,
) -> TraceSequence:
    """Builds one recording from where the draft is right.

    Args:
        matches: One 0 or 1 an output position: whether the draft proposes the emitted token.
        finish: "eos" makes the last token an end of text.
        eos_drafts: Mismatching positions where the draft proposes an end of text.
        rollout_eos_rate: Chance that a token drafted behind a mismatch is an end of text.
        prompt_len: Prompt tokens.
        compression: The target's.
        prompt_id: Id.
        task: Task.
        split: Split.
        accept_prob: Rejection sampling's probabilities; the matches if None.
        seed: Of tokens and signals.
    """
    rng = np.random.default_rng(seed)
    hits = np.array(list(matches), np.bool_)
    length = len(hits)
    tokens = rng.integers(2, VOCAB_SIZE, length).astype(np.int32)
    if finish == "eos":
        tokens[-1] = EOS
    draft_tokens = np.where(hits, tokens, VOCAB_SIZE).astype(np.int32)
    draft_tokens[list(eos_drafts)] = EOS
    starts = np.flatnonzero(~hits).astype(np.int16)
    rollout_tokens = rng.integers(2, VOCAB_SIZE, (len(starts), ROLLOUT_LENGTH)).astype(np.int32)
    rollout_tokens[rng.random(rollout_tokens.shape) < rollout_eos_rate] = EOS
    sequence = TraceSequence(
        prompt_id=prompt_id,
        task=task,
        split=split,
        compression=compression,
        prompt_len=prompt_len,
        finish=finish,
        tokens=tokens,
        target_signals=make_signals(rng, length),
        draft_tokens=draft_tokens,
        draft_signals=make_signals(rng, length),
        accept_prob=hits.astype(np.float32) if accept_prob is None else accept_prob,
        accepted_length=accepted_lengths(hits),
        eos_stop=np.full(length, GAMMA_MAX, np.int8),
        rollout_start=starts,
        rollout_tokens=rollout_tokens,
        rollout_signals=make_signals(rng, len(starts), ROLLOUT_LENGTH),
    )
    return replace(sequence, eos_stop=_eos_stops(sequence))


def _eos_stops(sequence: TraceSequence) -> NDArray[np.int8]:
    stops = []
    for position in range(len(sequence.tokens)):
        drafted, _ = sequence.draft_from(position, GAMMA_MAX)
        ends = np.flatnonzero(drafted == EOS)
        stops.append(int(ends[0]) + 1 if len(ends) else GAMMA_MAX)
    return np.array(stops, np.int8)


def random_sequence(rng: np.random.Generator, *, max_new_tokens: int, **settings: Any) -> TraceSequence:
    """Builds a recording of random length, agreement and ending."""
    finish = "eos" if rng.random() < 0.6 else "length"
    length = int(rng.integers(1, max_new_tokens + 1)) if finish == "eos" else max_new_tokens
    hits = rng.random(length) < rng.uniform(0.3, 1.0)
    misses = np.flatnonzero(~hits)
    if finish == "eos":
        misses = misses[misses < length - 1]
    return make_sequence(
        hits,
        finish=finish,
        eos_drafts=misses[rng.random(len(misses)) < 0.2].tolist(),
        rollout_eos_rate=0.1,
        prompt_len=int(rng.integers(1, 200)),
        accept_prob=settings.pop("accept_prob", None),
        seed=int(rng.integers(2**31)),
        **settings,
    )


def make_traces(sequences: Sequence[TraceSequence], *, max_new_tokens: int, sampled: bool = False) -> TraceSet:
    """Puts recordings into a set."""
    mode: dict[str, str | float | int] = {"mode": "gumbel", "temperature": 1.0} if sampled else {"mode": "greedy"}
    metadata = TraceMetadata(
        target_id="fake-target",
        draft_id="fake-draft",
        target_sha256="",
        draft_sha256="",
        tokenizer_sha256="",
        vocab_size=VOCAB_SIZE + 1,
        dtype={"fp16": "float32"},
        sampling=mode,
        max_new_tokens=max_new_tokens,
        eos_token_ids=[EOS],
        chat_template=False,
        device="cpu",
        versions={},
    )
    return TraceSet(metadata=metadata, sequences=tuple(sequences))


def random_traces(
    *,
    num_prompts: int = 8,
    compressions: Sequence[str] = ("fp16", "nf4"),
    tasks: Sequence[str] = ("code", "chat"),
    max_new_tokens: int = 40,
    sampled: bool = False,
    seed: int = 0,
) -> TraceSet:
    """Builds a set of random recordings; every fourth prompt belongs to the test split."""
    rng = np.random.default_rng(seed)
    sequences = []
    for compression in compressions:
        for number in range(num_prompts):
            sequence = random_sequence(
                rng,
                max_new_tokens=max_new_tokens,
                compression=compression,
                prompt_id=f"p{number}",
                task=tasks[number % len(tasks)],
                split="test" if number % 4 == 3 else "train",
            )
            if sampled:
                probabilities = rng.random(len(sequence.tokens)).astype(np.float32)
                sequence = replace(sequence, accept_prob=np.where(probabilities > 0.8, 1.0, probabilities))
            sequences.append(sequence)
    return make_traces(sequences, max_new_tokens=max_new_tokens, sampled=sampled)


def make_cost_table(**settings: Any) -> CostTable:
    """Builds times of two compressions that are exact in binary, so that sums can be compared with `==`.

    fp16: verify 8 + 0.25 a width beyond 1, draft 1 + 0.25 a width beyond 1 (seconds, at context 64).
    nf4: verify 4 + 1 a width beyond 1, draft as for fp16. All passes gain 2^-10 seconds a context token.
    """
    slope = 2.0**-10
    entries = {
        name: CostEntry(
            compression=name,
            dtype="float16",
            reference_context=64,
            draft_widths=(1, 5),
            draft_s=(1.0, 2.0),
            draft_context_slope_s=slope,
            verify_widths=(1, 5, 17),
            verify_s=(plain, plain + 4 * rise, plain + 16 * rise),
            verify_context_slope_s=slope,
        )
        for name, plain, rise in (("fp16", 8.0, 0.25), ("nf4", 4.0, 1.0))
    }
    content: dict[str, Any] = {"name": "fake", "kind": "fitted", "machine": {}, "entries": entries} | settings
    return CostTable(**content)


def compile_both(traces: TraceSet, table: CostTable | None = None) -> tuple[CompiledTraces, CompiledCost]:
    """Makes recordings and times ready for replay; `make_cost_table` if no table is given."""
    compiled = CompiledTraces(traces)
    return compiled, CompiledCost(table or make_cost_table(), compiled.compression_names)


def one_slot(
    sequence: TraceSequence, max_new_tokens: int, budget: int | None = None, cost: CostTable | None = None
) -> ReplayBatch:
    """Starts the replay of one recording in one slot."""
    batch = ReplayBatch(*compile_both(make_traces([sequence], max_new_tokens=max_new_tokens), cost), 1, budget=budget)
    batch.assign([0], [0])
    return batch


def outcome(drafted: int, accepted: int, seconds: float = 8.0) -> StepOutcome:
    """Builds what a step came to, as an online learner is told."""
    return StepOutcome(
        gamma=drafted,
        num_drafted=drafted,
        num_accepted=accepted,
        num_tested=min(accepted + 1, drafted),
        num_emitted=accepted + 1,
        draft_signals=np.zeros((drafted, 3), np.float32),
        target_entropy=0.0,
        target_confidence=1.0,
        seconds=seconds,
    )
