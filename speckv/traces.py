# SPDX-License-Identifier: Apache-2.0
"""Recorded decoding: trace files and the recordings in them.

The text does not depend on gamma, so the target's output with the draft's proposal at every position holds the outcome
of every possible step. Along an accepted run the draft reads the emitted text; past a mismatch at `m` it reads its own
tokens, so all steps with that first mismatch share one roll-out from `m`.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from speckv.errors import TraceError
from speckv.files import find_shipped, replacing
from speckv.types import GAMMA_MAX, NUM_SIGNALS

ASSETS = Path(__file__).parent / "assets" / "traces"
SCHEMA_VERSION = 1
METADATA_KEY = b"speckv"
ROLLOUT_LENGTH = GAMMA_MAX - 1
NO_TOKEN = -1
"""In place of a draft's token where it has nothing to propose."""

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]

_TEXT = ("prompt_id", "task", "split", "compression", "finish")
_VECTORS: dict[str, type[np.generic]] = {
    "tokens": np.int32,
    "draft_tokens": np.int32,
    "accepted_length": np.int8,
    "eos_stop": np.int8,
    "accept_prob": np.float32,
    "rollout_start": np.int16,
}
_PROMPT = "prompt_tokens"
"""Column that older files lack."""
_SIGNALS = ("target", "draft", "rollout")
_SIGNAL_NAMES = ("entropy", "confidence", "margin")
_LATER_FIELDS = ("template_date", "context_limits")
"""Metadata that older files lack."""
_DICTIONARY_COLUMNS = ["task", "split", "compression", "finish"]
_SPLIT_COLUMNS = [f"{who}_{signal}.list.element" for who in _SIGNALS for signal in _SIGNAL_NAMES]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceMetadata:
    """How a trace file was recorded; stored inside it.

    Attributes:
        draft_id: A model's id or the name of a lookup.
        target_sha256, draft_sha256: Hashes of the weights as loaded, "" if unknown or none.
        dtype: Compression -> dtype of the target's arithmetic, e.g. {"fp16": "float32"}; "draft" -> the draft's, "none"
            for a lookup.
        sampling: mode ("greedy" or "gumbel"), temperature, top_k, top_p, seed; further keys are allowed.
        max_new_tokens: Token budget of every sequence, the prefill's token included.
        template_date: Local ISO date and time in the chat template; "" where it prints none, or in older files.
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
        """The date with which prompts encode as they were recorded."""
        return datetime.fromisoformat(self.template_date) if self.template_date else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSequence:
    """One prompt's output and the draft's proposal at each of its positions.

    Position `j` counts output tokens from 0, the prefill's token; `n` is the output's length and `r` the number of
    positions where the draft proposes another token than the emitted one.

    Attributes:
        target_signals: Shape [n, 3]; row j describes the distribution that token j was emitted from.
        draft_tokens: Shape [n]; proposal for position j after the emitted tokens before it, or `NO_TOKEN`.
        draft_signals: Shape [n, 3]; of the distribution of that proposal, zeros where there is none.
        accept_prob: Shape [n]; probability in [0, 1] that rejection sampling accepts a drafted token at j, given that
            token j is emitted there. Greedy: 1 where the proposal matches, else 0.
        accepted_length: Shape [n]; tokens accepted by a draft of gamma_max that starts at j.
        eos_stop: Shape [n]; tokens drafted from j up to and including the draft's first end of text, or until it has no
            proposal; else gamma_max.
        rollout_start: Shape [r]; positions where a wrong token is proposed, ascending.
        rollout_tokens: Shape [r, 15]; proposals after the draft's own wrong token, `NO_TOKEN` behind the last one.
        prompt_tokens: Shape [prompt_len]; empty in older files.
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
        """Refuses another prompt than the recorded one with a TraceError; a file without token ids compares lengths."""
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
        """Token ids, shape [d], and signals, shape [d, 3], of a draft from a position; d < depth where it ends."""
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
    """Number of consecutive matches from each position on, at most `gamma_max`.

    >>> accepted_lengths(np.array([True, True, False, True]))
    array([2, 1, 0, 1], dtype=int8)
    """
    places = np.arange(len(matches))
    next_miss = np.minimum.accumulate(np.where(matches, len(matches), places)[::-1])[::-1]
    return np.minimum(next_miss - places, gamma_max).astype(np.int8)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSet:
    """A trace file in memory; `sha256` is that of the file, also in a selection, or "" if never on disk."""

    metadata: TraceMetadata
    sequences: tuple[TraceSequence, ...]
    sha256: str = ""

    @property
    def compressions(self) -> tuple[str, ...]:
        """Compressions present, in order of first appearance."""
        return tuple(dict.fromkeys(s.compression for s in self.sequences))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks present, in order of first appearance."""
        return tuple(dict.fromkeys(s.task for s in self.sequences))

    @property
    def prompt_ids(self) -> tuple[str, ...]:
        """Distinct prompt ids, in order of first appearance."""
        return tuple(dict.fromkeys(s.prompt_id for s in self.sequences))

    def select(
        self,
        *,
        split: str | None = None,
        compressions: Iterable[str] | None = None,
        tasks: Iterable[str] | None = None,
        prompt_ids: Iterable[str] | None = None,
    ) -> "TraceSet":
        """Keeps the sequences that meet every given condition; an empty result is a TraceError naming what exists."""
        wanted: dict[str, set[str] | None] = {
            "split": {split} if split else None,
            "compression": set(compressions) if compressions is not None else None,
            "task": set(tasks) if tasks is not None else None,
            "prompt_id": set(prompt_ids) if prompt_ids is not None else None,
        }
        kept = tuple(s for s in self.sequences if all(v is None or getattr(s, name) in v for name, v in wanted.items()))
        if not kept:
            asked = {name: sorted(v)[:8] for name, v in wanted.items() if v is not None}
            have = {name: sorted({getattr(s, name) for s in self.sequences})[:8] for name in wanted}
            raise TraceError(f"No recorded sequence matches {asked}; this trace holds, among others, {have}.")
        return TraceSet(metadata=self.metadata, sequences=kept, sha256=self.sha256)

    def save(self, path: Path | str) -> None:
        """Writes one Parquet file, whole or not at all."""
        with replacing(path) as partial:
            pq.write_table(
                _to_table(self.metadata, self.sequences),
                partial,
                compression="zstd",
                compression_level=15,
                use_dictionary=_DICTIONARY_COLUMNS,
                column_encoding=dict.fromkeys(_SPLIT_COLUMNS, "BYTE_STREAM_SPLIT"),
            )

    @staticmethod
    def load(path: Path | str) -> "TraceSet":
        """Reads a trace file; a TraceError if it is missing, truncated, no SpecKV trace, or of another version."""
        path = Path(path)
        if not path.is_file():
            raise TraceError(f"Expected a trace file at {path}, found none. Record one: speckv profile.")
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise TraceError(f"{path}: truncated or damaged Parquet ({_one_line(error)}). Record it again.") from error
        try:
            return _from_table(table, path)
        except (KeyError, pa.ArrowException, ValueError) as error:
            if isinstance(error, TraceError):
                raise
            raise TraceError(f"{path}: a column is missing or malformed ({_one_line(error)}). Record again.") from error


def find_traces(name_or_path: str | Path) -> Path:
    """Resolves a shipped trace's name or a path; a TraceError names the shipped ones if it is neither."""
    otherwise = "Record one with `speckv profile`."
    return find_shipped(name_or_path, ASSETS, ".parquet", TraceError, kind="trace file", otherwise=otherwise)


def split_validation(traces: TraceSet, fraction: float = 0.2) -> tuple[TraceSet, TraceSet]:
    """Splits whole prompts into a training part and a validation part of about `fraction`, always alike."""
    limit = int(fraction * 2**32)
    held_out = {
        name
        for name in traces.prompt_ids
        if int(hashlib.sha256(f"validation:{name}".encode()).hexdigest()[:8], 16) < limit
    }
    rest = set(traces.prompt_ids) - held_out
    return traces.select(prompt_ids=rest), traces.select(prompt_ids=held_out)


def merge(parts: Sequence[TraceSet]) -> TraceSet:
    """Joins shards of one recording; a TraceError where they contradict each other or hold a sequence twice."""
    first = parts[0].metadata
    shared = recording_identity(first)
    limits: dict[str, int] = {}
    for part in parts:
        found = recording_identity(part.metadata)
        differing = [name for name, value in shared.items() if found[name] != value]
        # Older parts lack some limits.
        differing += [f"context_limits[{n}]" for n, v in part.metadata.context_limits.items() if limits.get(n, v) != v]
        if differing:
            raise TraceError(f"Expected shards of one recording, got different metadata ({', '.join(differing)}).")
        limits |= part.metadata.context_limits
    sequences = tuple(s for part in parts for s in part.sequences)
    keys = [s.key for s in sequences]
    if len(set(keys)) != len(keys):
        twice = next(k for k in keys if keys.count(k) > 1)
        raise TraceError(f"Expected every sequence once, got {twice} twice. Delete one of the shards that hold it.")
    _require_one_prompt_an_id(sequences)
    dtype = {name: value for part in parts for name, value in part.metadata.dtype.items()}
    device = "; ".join(dict.fromkeys(part.metadata.device for part in parts))
    metadata = replace(first, dtype=dtype, device=device, context_limits=limits)
    return TraceSet(metadata=metadata, sequences=tuple(sorted(sequences, key=_order)))


def recording_identity(metadata: TraceMetadata) -> dict[str, Any]:
    """Metadata that all shards of one recording share, by name."""
    varying = ("dtype", "versions", "notes", "device", "context_limits")
    return {name: value for name, value in asdict(metadata).items() if name not in varying}


def _require_one_prompt_an_id(sequences: Iterable[TraceSequence]) -> None:
    recorded: dict[str, TraceSequence] = {}
    for sequence in sequences:
        if not len(sequence.prompt_tokens):
            continue
        other = recorded.setdefault(sequence.prompt_id, sequence)
        if not np.array_equal(other.prompt_tokens, sequence.prompt_tokens):
            raise TraceError(
                f"Expected one prompt under the id {sequence.prompt_id}, got other token ids at {sequence.compression} "
                f"than at {other.compression}. Record one of them again from the same prompts file, or rename it."
            )


def _order(sequence: TraceSequence) -> tuple[str, str, str, str]:
    return sequence.compression, sequence.split, sequence.task, sequence.prompt_id


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _to_table(metadata: TraceMetadata, sequences: Sequence[TraceSequence]) -> pa.Table:
    columns: dict[str, Any] = {name: [getattr(s, name) for s in sequences] for name in _TEXT}
    columns["prompt_len"] = pa.array([s.prompt_len for s in sequences], pa.int32())
    for name, dtype in _VECTORS.items():
        kind = pa.list_(pa.from_numpy_dtype(dtype))
        columns[name] = pa.array([getattr(s, name) for s in sequences], kind)
    if any(len(s.prompt_tokens) for s in sequences):
        columns[_PROMPT] = pa.array([s.prompt_tokens for s in sequences], pa.list_(pa.int32()))
    columns["rollout_tokens"] = pa.array([s.rollout_tokens.ravel() for s in sequences], pa.list_(pa.int32()))
    for who in _SIGNALS:
        for axis, signal in enumerate(_SIGNAL_NAMES):
            values = [np.ascontiguousarray(getattr(s, f"{who}_signals")[..., axis]).ravel() for s in sequences]
            columns[f"{who}_{signal}"] = pa.array(values, pa.list_(pa.float32()))
    text = json.dumps(asdict(metadata), sort_keys=True)
    return pa.table(columns).replace_schema_metadata({METADATA_KEY: text.encode()})


def _read_metadata(table: pa.Table, path: Path) -> TraceMetadata:
    raw = (table.schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise TraceError(f"{path} is a Parquet file but no SpecKV trace. Record one with `speckv profile`.")
    content = json.loads(raw)
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise TraceError(
            f"{path}: expected trace schema version {SCHEMA_VERSION}, got {version}. "
            "Record it again with this version of SpecKV, or install the version that wrote it."
        )
    known = {f.name for f in fields(TraceMetadata)}
    required = {f.name for f in fields(TraceMetadata) if f.name not in _LATER_FIELDS}
    if not required <= set(content) <= known:
        wrong = sorted(required - set(content) | set(content) - known)
        raise TraceError(f"{path}: metadata fields differ from the schema: {wrong}.")
    if content["gamma_max"] not in range(1, GAMMA_MAX + 1):
        raise TraceError(
            f"{path}: expected gamma_max from 1 to {GAMMA_MAX}, got {content['gamma_max']!r}. Record it again."
        )
    return TraceMetadata(**content)


def _from_table(table: pa.Table, path: Path) -> TraceSet:
    metadata = _read_metadata(table, path)
    columns = {name: table.column(name).to_pylist() for name in (*_TEXT, "prompt_len")}
    columns |= {name: _lists(table, name) for name in _VECTORS}
    rollouts = _lists(table, "rollout_tokens")
    prompts = _lists(table, _PROMPT) if _PROMPT in table.column_names else [np.zeros(0, np.int32)] * table.num_rows
    signals = {
        who: [
            np.stack(parts, axis=-1)
            for parts in zip(*(_lists(table, f"{who}_{s}") for s in _SIGNAL_NAMES), strict=True)
        ]
        for who in _SIGNALS
    }
    sequences = []
    for row in range(table.num_rows):
        sequence = TraceSequence(
            **{name: values[row] for name, values in columns.items()},
            target_signals=signals["target"][row],
            draft_signals=signals["draft"][row],
            rollout_tokens=rollouts[row].reshape(-1, ROLLOUT_LENGTH),
            rollout_signals=signals["rollout"][row].reshape(-1, ROLLOUT_LENGTH, NUM_SIGNALS),
            prompt_tokens=prompts[row],
        )
        _check(sequence, metadata, path)
        sequences.append(sequence)
    if not sequences:
        raise TraceError(f"{path} holds no sequence. Record it again.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return TraceSet(metadata=metadata, sequences=tuple(sequences), sha256=digest)


def _lists(table: pa.Table, name: str) -> list[NDArray[Any]]:
    column = table.column(name).combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    ends = np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))
    return np.split(values, ends[:-1])


def _check(sequence: TraceSequence, metadata: TraceMetadata, path: Path) -> None:
    length = len(sequence.tokens)
    same = all(
        len(getattr(sequence, name)) == length
        for name in ("target_signals", "draft_tokens", "draft_signals", "accept_prob", "accepted_length", "eos_stop")
    )
    starts = len(sequence.rollout_start)
    known_prompt = len(sequence.prompt_tokens) in (0, sequence.prompt_len)
    whole = known_prompt and len(sequence.rollout_tokens) == starts == len(sequence.rollout_signals)
    if not (same and whole and 1 <= length <= metadata.max_new_tokens and sequence.finish in ("eos", "length")):
        raise TraceError(f"{path}: sequence {sequence.key} is inconsistent (lengths or finish). Record it again.")
