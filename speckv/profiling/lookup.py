# SPDX-License-Identifier: Apache-2.0
"""Recordings with a lookup as the draft, computed without a model: a lookup's proposals depend on the text only."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speckv.decoding.prompt_lookup import LookupDrafter, PromptLookup
from speckv.errors import ConfigError, DataError, TraceError
from speckv.models import PairConfig, encode_prompt, load_tokenizer, vocabulary_hash
from speckv.models.tokenizer import template_reads_date
from speckv.ngrams import Guess
from speckv.profiling.prompts import Prompt
from speckv.traces import NO_TOKEN, ROLLOUT_LENGTH, TraceSequence, TraceSet, accepted_lengths
from speckv.types import GAMMA_MAX, NUM_SIGNALS

Run = tuple[list[int], list[tuple[float, float, float]]]
"""Proposed tokens in order, and their signals."""


def with_lookup(
    sequence: TraceSequence, prompt_tokens: Sequence[int], lookup: PromptLookup, eos_token_ids: Iterable[int]
) -> TraceSequence:
    """Replaces the recorded draft's proposals by those of a lookup; `prompt_tokens` include the chat template.

    A lookup proposes with probability 1, so `accept_prob` is 1 where the emitted token equals the proposal, else 0.

    Raises:
        TraceError: if the prompt is not the recorded one.
    """
    sequence.require_prompt(prompt_tokens)
    eos, tokens = frozenset(eos_token_ids), sequence.tokens.tolist()
    drafter = LookupDrafter(lookup)
    drafter.read(prompt_tokens)
    on_path: Run = ([], [])
    starts, roll_outs = [], []
    for position, token in enumerate(tokens):
        guess = drafter.guess()
        _note(on_path, guess)
        if guess is not None and guess.token != token:
            starts.append(position)
            roll_outs.append(_roll_out(drafter, guess.token, eos))
        drafter.read([token])
    draft_tokens, draft_signals = _arrays([on_path], len(tokens))
    rollout_tokens, rollout_signals = _arrays(roll_outs, ROLLOUT_LENGTH)
    rollout_start = np.array(starts, np.int16)
    matches = draft_tokens[0] == sequence.tokens
    return replace(
        sequence,
        draft_tokens=draft_tokens[0],
        draft_signals=draft_signals[0],
        accept_prob=matches.astype(np.float32),
        accepted_length=accepted_lengths(matches),
        eos_stop=draft_stops(sequence.tokens, draft_tokens[0], rollout_start, rollout_tokens, eos),
        rollout_start=rollout_start,
        rollout_tokens=rollout_tokens,
        rollout_signals=rollout_signals,
        prompt_tokens=np.array(prompt_tokens, np.int32),
    )


def record_lookup(recorded: TraceSet, prompts: Sequence[Prompt], pair: PairConfig, *, notes: str = "") -> TraceSet:
    """Replaces the draft of a whole recording by a lookup; needs the target's tokenizer, but no model.

    `prompts` are at least those of the recording; the pair's draft must be "lookup".

    Raises:
        TraceError: if the tokenizer or a prompt is not the recording's.
        DataError: if a prompt is missing.
    """
    if pair.draft != "lookup":
        raise ConfigError(
            f"Expected model.draft=lookup to take texts from a recording, got {pair.draft!r}: what a model drafts has "
            "to be recorded with it. Leave `from` out."
        )
    metadata = recorded.metadata
    tokenizer = load_tokenizer(pair.target)
    found = vocabulary_hash(tokenizer)
    if metadata.tokenizer_sha256 not in ("", found):
        raise TraceError(
            f"Expected the tokenizer that the texts of {metadata.target_id} were recorded with "
            f"({metadata.tokenizer_sha256[:12]}), got that of {pair.target} ({found[:12]}). Give model.target of the "
            "recording."
        )
    lookup = PromptLookup(metadata.vocab_size, pair.lookup_longest, pair.lookup_shortest)
    texts = {prompt.prompt_id: prompt.text for prompt in prompts}
    missing = sorted(set(recorded.prompt_ids) - set(texts))
    if missing:
        raise DataError(
            f"Expected every prompt of the recording, found no {missing[0]!r} and {len(missing) - 1} others. Add the "
            "prompts files that it was made from."
        )
    _require_date(recorded, reads_date=metadata.chat_template and template_reads_date(tokenizer))
    ids = {
        name: encode_prompt(
            tokenizer, texts[name], chat_template=metadata.chat_template, date=metadata.template_datetime
        )
        for name in recorded.prompt_ids
    }
    sequences = tuple(with_lookup(s, ids[s.prompt_id], lookup, metadata.eos_token_ids) for s in recorded.sequences)
    origin = (
        f"Texts and target signals of the recording with draft {metadata.draft_id}, "
        f"sha256 {recorded.sha256 or 'unknown'}."
    )
    of_lookup = replace(
        metadata,
        draft_id=lookup.name,
        draft_sha256="",
        dtype=metadata.dtype | {"draft": "none"},
        notes=notes or origin,
        context_limits={name: limit for name, limit in metadata.context_limits.items() if name != "draft"},
    )
    return TraceSet(metadata=of_lookup, sequences=sequences)


def save_new(traces: TraceSet, out: Path) -> TraceSet:
    """Writes a trace file, which must not exist, and reads it again."""
    require_absent(out)
    traces.save(out)
    return TraceSet.load(out)


def require_absent(out: Path) -> None:
    """Refuses to overwrite a trace file."""
    if out.exists():
        raise TraceError(
            f"Expected {out} not to exist, so that nothing is overwritten. Move it or choose another name."
        )


def _require_date(recorded: TraceSet, *, reads_date: bool) -> None:
    known = recorded.metadata.template_date or all(len(s.prompt_tokens) for s in recorded.sequences)
    if reads_date and not known:
        raise TraceError(
            "Expected a recording with the date that its chat template printed, got one of an older version, without "
            "it. Record it again."
        )


def _roll_out(drafter: LookupDrafter, wrong: int, eos: frozenset[int]) -> Run:
    run: Run = ([], [])
    kept, token = drafter.length, wrong
    while len(run[0]) < ROLLOUT_LENGTH and token not in eos:
        drafter.read([token])
        guess = drafter.guess()
        if guess is None:
            break
        _note(run, guess)
        token = guess.token
    drafter.truncate(kept)
    return run


def _note(run: Run, guess: Guess | None) -> None:
    run[0].append(guess.token if guess else NO_TOKEN)
    run[1].append((guess.entropy, guess.confidence, guess.margin) if guess else (0.0, 0.0, 0.0))


def _arrays(runs: list[Run], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of shape [runs, length] and signals of shape [runs, length, 3], padded after each run's end."""
    tokens = np.full((len(runs), length), NO_TOKEN, np.int32)
    signals = np.zeros((len(runs), length, NUM_SIGNALS), np.float32)
    for row, (proposed, found) in enumerate(runs):
        tokens[row, : len(proposed)] = proposed
        signals[row, : len(proposed)] = np.reshape(np.array(found, np.float32), (-1, NUM_SIGNALS))
    return tokens, signals


def draft_stops(
    tokens: NDArray[np.int32],
    draft_tokens: NDArray[np.int32],
    rollout_start: NDArray[np.int16],
    rollout_tokens: NDArray[np.int32],
    eos_token_ids: Iterable[int],
) -> NDArray[np.int8]:
    """Tokens drafted from each position up to and including the first end of text, or until nothing is proposed.

    The arguments are columns of `TraceSequence`. The value is gamma_max where neither occurs in the recording.
    """
    ends = np.array([*eos_token_ids, NO_TOKEN])
    on_path = np.isin(draft_tokens, ends)
    row_of = {int(start): row for row, start in enumerate(rollout_start)}
    off_path = np.isin(rollout_tokens, ends)
    stops = np.full(len(tokens), GAMMA_MAX, np.int8)
    for start in range(len(tokens)):
        for depth in range(min(GAMMA_MAX, len(tokens) - start)):
            position = start + depth
            if on_path[position]:
                stops[start] = depth + (draft_tokens[position] != NO_TOKEN)
                break
            if draft_tokens[position] != tokens[position]:
                row = row_of[position]
                later = np.flatnonzero(off_path[row, : GAMMA_MAX - depth - 1])
                if len(later):
                    stops[start] = depth + 1 + later[0] + (rollout_tokens[row, later[0]] != NO_TOKEN)
                break
    return stops
