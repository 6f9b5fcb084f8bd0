# SPDX-License-Identifier: Apache-2.0
"""Recordings of a lookup, which need no model: what it proposes depends on the text alone, and that is on file.

So a recording with any draft gives the recording with a lookup, once the prompt's tokens are known.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from speckv.decoding.prompt_lookup import LookupDrafter, PromptLookup
from speckv.errors import ConfigError, DataError, TraceError
from speckv.models import PairConfig, encode_prompt, load_tokenizer, vocabulary_hash
from speckv.models.tokenizer import template_reads_date
from speckv.ngrams import Guess
from speckv.profiling.prompts import Prompt
from speckv.profiling.stops import draft_stops
from speckv.traces import NO_TOKEN, ROLLOUT_LENGTH, TraceMetadata, TraceSequence, TraceSet, accepted_lengths
from speckv.types import NUM_SIGNALS

Run = tuple[list[int], list[tuple[float, float, float]]]
"""Tokens that were proposed one after the other, and their signals."""


def with_lookup(
    sequence: TraceSequence, prompt_tokens: Sequence[int], lookup: PromptLookup, eos_token_ids: Iterable[int]
) -> TraceSequence:
    """Puts what a lookup proposes along a recorded text in place of what the recorded draft did.

    Rejection sampling accepts a proposal that is certain just where the emitted token equals it, so `accept_prob` is
    1 there and 0 elsewhere. Signals are kept to the last bit.

    Args:
        sequence: A recording with any draft.
        prompt_tokens: Of its prompt, chat template included.
        lookup: Its lengths of a match.
        eos_token_ids: Tokens that end a text.

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
    """Turns a whole recording into one with a lookup; of the pair it needs the tokenizer alone.

    Prompts are encoded with the recording's date.

    Args:
        recorded: With any draft.
        prompts: Those that it names, and perhaps others.
        pair: The target, for its tokenizer; draft "lookup".
        notes: Free text for the file's readers.

    Raises:
        ConfigError: if the draft is no lookup.
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
    return TraceSet(metadata=lookup_metadata(metadata, lookup, notes or _origin(recorded)), sequences=sequences)


def lookup_metadata(metadata: TraceMetadata, lookup: PromptLookup, notes: str) -> TraceMetadata:
    """How a recording with a lookup came to be, from that of its texts."""
    dtype = metadata.dtype | {"draft": "none"}
    limits = {name: limit for name, limit in metadata.context_limits.items() if name != "draft"}
    return replace(metadata, draft_id=lookup.name, draft_sha256="", dtype=dtype, notes=notes, context_limits=limits)


def save_new(traces: TraceSet, out: Path) -> TraceSet:
    """Writes a trace file where there is none, and reads it again.

    Raises:
        TraceError: if there is one.
    """
    if out.exists():
        raise TraceError(
            f"Expected {out} not to exist, so that nothing is overwritten. Move it or choose another name."
        )
    traces.save(out)
    return TraceSet.load(out)


def _require_date(recorded: TraceSet, *, reads_date: bool) -> None:
    """Refuses texts whose prompts held a date that the file lacks; lengths alone would not show another date."""
    known = recorded.metadata.template_date or all(len(s.prompt_tokens) for s in recorded.sequences)
    if reads_date and not known:
        raise TraceError(
            "Expected a recording with the date that its chat template printed, got one of an older version, without "
            "it. Record it again."
        )


def _origin(recorded: TraceSet) -> str:
    draft = recorded.metadata.draft_id
    return f"Texts and target signals of the recording with draft {draft}, sha256 {recorded.sha256 or 'unknown'}."


def _roll_out(drafter: LookupDrafter, wrong: int, eos: frozenset[int]) -> Run:
    """What is proposed after a wrong token, until nothing is or the text would end."""
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
    """Tokens of shape [runs, length] and signals of shape [runs, length, 3], padded behind each run's end."""
    tokens = np.full((len(runs), length), NO_TOKEN, np.int32)
    signals = np.zeros((len(runs), length, NUM_SIGNALS), np.float32)
    for row, (proposed, found) in enumerate(runs):
        tokens[row, : len(proposed)] = proposed
        signals[row, : len(proposed)] = np.reshape(np.array(found, np.float32), (-1, NUM_SIGNALS))
    return tokens, signals
