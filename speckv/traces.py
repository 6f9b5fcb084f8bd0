# SPDX-License-Identifier: Apache-2.0
"""Recorded decoding: the file format, and what one recorded sequence says about every possible step.

The text does not depend on gamma, so one recording of the target's output, with the draft's proposal at every
position, holds the outcome of every step that any controller could have taken. Along an accepted run the draft reads
exactly the emitted text: one value per position is enough. Past a mismatch it reads its own words, and because a
drafter sees the prefix alone, all steps whose first mismatch is at position `m` share one roll-out from `m`.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from speckv.errors import TraceError, nearest
from speckv.types import NUM_SIGNALS

SCHEMA_VERSION = 1
GAMMA_MAX = 16
ROLLOUT_LENGTH = GAMMA_MAX - 1
METADATA_KEY = b"speckv"
ASSETS = Path(__file__).parent / "assets" / "traces"

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceMetadata:
    """How a trace file came to be; travels inside it.

    Attributes:
        target_id: Hub id, folder or file name of the target.
        draft_id: The same of the draft.
        target_sha256: Hash of the target's weights as loaded, or "" if unknown.
        draft_sha256: Hash of the draft's weights.
        tokenizer_sha256: Hash of the shared vocabulary.
        vocab_size: Number of tokens both models score.
        dtype: Compression -> dtype of the target's arithmetic, e.g. {"fp16": "float32"}; "draft" -> the draft's.
        sampling: mode ("greedy" or "gumbel"), temperature, top_k, top_p, seed.
        max_new_tokens: Token budget of every sequence, the prefill's token included.
        gamma_max: Deepest recorded draft.
        eos_token_ids: Tokens that end a text.
        chat_template: Whether prompts went through the target's chat template.
        device: Where it ran.
        versions: Package -> version.
        notes: Anything a reader must know.
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

    @property
    def is_sampled(self) -> bool:
        """Whether the text was drawn at a temperature above zero."""
        return self.sampling["mode"] != "greedy"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSequence:
    """One prompt's output and the draft's proposal at each of its positions.

    Position `j` counts output tokens from 0; token 0 comes from the target's prefill. `n` is the output's length and
    `r` the number of positions where the draft's proposal is not the emitted token.

    Attributes:
        prompt_id: Id in the prompts file.
        task: Its task.
        split: Its split.
        compression: The target's compression.
        prompt_len: Prompt tokens, chat template included.
        finish: "eos" or "length".
        tokens: Shape [n].
        target_signals: Shape [n, 3]; row j describes the distribution that token j was emitted from.
        draft_tokens: Shape [n]; the draft's proposal for position j after the emitted tokens before it.
        draft_signals: Shape [n, 3]; of the distribution of that proposal.
        accept_prob: Shape [n]; probability in [0, 1] that rejection sampling accepts a drafted token at j, given that
            token j is emitted there. Greedy: 1 where the proposal matches, else 0.
        accepted_length: Shape [n]; tokens accepted by a draft of gamma_max that starts at j.
        eos_stop: Shape [n]; tokens drafted from j up to and including the draft's first end of text, else gamma_max.
        rollout_start: Shape [r]; positions of the mismatches, ascending.
        rollout_tokens: Shape [r, 15]; what the draft goes on to propose after its own wrong token.
        rollout_signals: Shape [r, 15, 3].
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

    @property
    def key(self) -> tuple[str, str]:
        """Identifies the sequence inside its file."""
        return self.compression, self.prompt_id

    def draft_from(self, position: int, depth: int) -> tuple[Int32, Float32]:
        """What the draft proposes in a step that starts at `position`.

        Args:
            position: Output position of the first drafted token, in [0, n).
            depth: Number of tokens to draft, at most gamma_max; fewer come back where the recording ends.

        Returns:
            Token ids of shape [d] and signals of shape [d, 3], d <= depth.
        """
        end = len(self.tokens)
        on_path = min(position + int(self.accepted_length[position]) + 1, position + depth, end)
        tokens, signals = self.draft_tokens[position:on_path], self.draft_signals[position:on_path]
        mismatch = on_path - 1
        missing = depth - len(tokens)
        if missing > 0 and self.draft_tokens[mismatch] != self.tokens[mismatch]:
            row = int(np.searchsorted(self.rollout_start, mismatch))
            tokens = np.concatenate([tokens, self.rollout_tokens[row, :missing]])
            signals = np.concatenate([signals, self.rollout_signals[row, :missing]])
        return tokens, signals


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSet:
    """A trace file in memory.

    Attributes:
        metadata: How it came to be.
        sequences: Its recordings.
        sha256: Hash of the file it was read from; of a selection, still the file's; "" if never on disk.
    """

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
        kept = tuple(
            s for s in self.sequences if all(v is None or getattr(s, name) in v for name, v in wanted.items())
        )
        if not kept:
            asked = {name: sorted(v)[:8] for name, v in wanted.items() if v is not None}
            have = {name: sorted({getattr(s, name) for s in self.sequences})[:8] for name in wanted}
            raise TraceError(f"No recorded sequence matches {asked}; this trace holds, among others, {have}.")
        return TraceSet(metadata=self.metadata, sequences=kept, sha256=self.sha256)

    def save(self, path: Path | str) -> None:
        """Writes one Parquet file, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        table = _to_table(self)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            pq.write_table(
                table,
                partial,
                compression="zstd",
                compression_level=15,
                use_dictionary=_DICTIONARY_COLUMNS,
                column_encoding=dict.fromkeys(_SPLIT_COLUMNS, "BYTE_STREAM_SPLIT"),
            )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @staticmethod
    def load(path: Path | str) -> "TraceSet":
        """Reads a trace file.

        Raises:
            TraceError: if it is missing, truncated, no SpecKV trace, or of another schema version.
        """
        path = Path(path)
        if not path.is_file():
            raise TraceError(f"Expected a trace file at {path}, found none. Record one with `python -m speckv profile`.")
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise TraceError(
                f"{path} is not a readable Parquet file ({_one_line(error)}): it is truncated or damaged. "
                "Fetch or record it again."
            ) from error
        try:
            return _from_table(table, path)
        except (KeyError, pa.ArrowException, ValueError) as error:
            if isinstance(error, TraceError):
                raise
            raise TraceError(f"{path}: a column is missing or malformed ({_one_line(error)}). Record it again.") from error


def find_traces(name_or_path: str | Path) -> Path:
    """Resolves a shipped trace's name or a path.

    Raises:
        TraceError: naming the shipped traces if it is neither.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = ASSETS / f"{name_or_path}.parquet"
    if shipped.is_file():
        return shipped
    known = sorted(p.stem for p in ASSETS.glob("*.parquet"))
    raise TraceError(
        f"Expected a trace file or the name of a shipped trace {known}, got {str(name_or_path)!r}."
        + nearest(str(name_or_path), known)
    )


def split_validation(traces: TraceSet, fraction: float = 0.2) -> tuple[TraceSet, TraceSet]:
    """Splits whole prompts into a training and a validation part, the same way every time.

    Args:
        traces: Usually the train split.
        fraction: Share of prompts that goes to validation, in (0, 1).

    Returns:
        The training part and the validation part.
    """
    limit = int(fraction * 2**32)
    held_out = {
        name
        for name in traces.prompt_ids
        if int(hashlib.sha256(f"validation:{name}".encode()).hexdigest()[:8], 16) < limit
    }
    rest = set(traces.prompt_ids) - held_out
    return traces.select(prompt_ids=rest), traces.select(prompt_ids=held_out)


def merge(parts: Sequence[TraceSet]) -> TraceSet:
    """Joins shards of one recording.

    Raises:
        TraceError: if they were recorded differently or hold a sequence twice.
    """
    first = parts[0]
    for part in parts[1:]:
        if _identity(part.metadata) != _identity(first.metadata):
            raise TraceError("Expected shards of one recording, got shards with different metadata. Merge them apart.")
    sequences = tuple(s for part in parts for s in part.sequences)
    keys = [s.key for s in sequences]
    if len(set(keys)) != len(keys):
        twice = next(k for k in keys if keys.count(k) > 1)
        raise TraceError(f"Expected every sequence once, got {twice} twice. Delete one of the shards that hold it.")
    dtype = {name: value for part in parts for name, value in part.metadata.dtype.items()}
    metadata = TraceMetadata(**{**_as_dict(first.metadata), "dtype": dtype})
    return TraceSet(metadata=metadata, sequences=tuple(sorted(sequences, key=_order)))


def round_mantissa(values: Float32, bits: int = 13) -> Float32:
    """Rounds to `bits` binary digits after the leading one, so that the file compresses.

    >>> float(round_mantissa(np.array([0.3], np.float32), bits=4)[0])
    0.296875
    """
    mantissa, exponent = np.frexp(values)
    scale = np.float32(2.0 ** (bits + 1))
    return np.ldexp(np.round(mantissa * scale) / scale, exponent).astype(np.float32)


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


# --- Parquet -------------------------------------------------------------------------------------------------------

_TEXT = ("prompt_id", "task", "split", "compression", "finish")
_VECTORS = {"tokens": np.int32, "draft_tokens": np.int32, "accepted_length": np.int8, "eos_stop": np.int8}
_VECTORS |= {"accept_prob": np.float32, "rollout_start": np.int16}
_SIGNALS = ("target", "draft", "rollout")
_SIGNAL_NAMES = ("entropy", "confidence", "margin")
_DICTIONARY_COLUMNS = ["task", "split", "compression", "finish"]
_SPLIT_COLUMNS = [f"{who}_{signal}.list.element" for who in _SIGNALS for signal in _SIGNAL_NAMES]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _as_dict(metadata: TraceMetadata) -> dict[str, Any]:
    return asdict(metadata)


def _identity(metadata: TraceMetadata) -> dict[str, Any]:
    varying = ("dtype", "versions", "notes")
    return {name: value for name, value in _as_dict(metadata).items() if name not in varying}


def _order(sequence: TraceSequence) -> tuple[str, str, str, str]:
    return sequence.compression, sequence.split, sequence.task, sequence.prompt_id


def _to_table(traces: TraceSet) -> pa.Table:
    columns: dict[str, Any] = {name: [getattr(s, name) for s in traces.sequences] for name in _TEXT}
    columns["prompt_len"] = pa.array([s.prompt_len for s in traces.sequences], pa.int32())
    for name, dtype in _VECTORS.items():
        kind = pa.list_(pa.from_numpy_dtype(dtype))
        columns[name] = pa.array([getattr(s, name) for s in traces.sequences], kind)
    columns["rollout_tokens"] = pa.array([s.rollout_tokens.ravel() for s in traces.sequences], pa.list_(pa.int32()))
    for who in _SIGNALS:
        for axis, signal in enumerate(_SIGNAL_NAMES):
            values = [np.ascontiguousarray(getattr(s, f"{who}_signals")[..., axis]).ravel() for s in traces.sequences]
            columns[f"{who}_{signal}"] = pa.array(values, pa.list_(pa.float32()))
    text = json.dumps(_as_dict(traces.metadata), sort_keys=True)
    return pa.table(columns).replace_schema_metadata({METADATA_KEY: text.encode()})


def _read_metadata(table: pa.Table, path: Path) -> TraceMetadata:
    raw = (table.schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise TraceError(f"{path} is a Parquet file but no SpecKV trace. Record one with `python -m speckv profile`.")
    content = json.loads(raw)
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise TraceError(
            f"{path}: expected trace schema version {SCHEMA_VERSION}, got {version}. "
            "Record it again with this version of SpecKV, or install the version that wrote it."
        )
    known = {f.name for f in fields(TraceMetadata)}
    if set(content) != known:
        raise TraceError(f"{path}: metadata fields differ from the schema: {sorted(set(content) ^ known)}.")
    return TraceMetadata(**content)


def _from_table(table: pa.Table, path: Path) -> TraceSet:
    metadata = _read_metadata(table, path)
    text = {name: table.column(name).to_pylist() for name in (*_TEXT, "prompt_len")}
    vectors = {name: _lists(table, name) for name in (*_VECTORS, "rollout_tokens")}
    signals = {
        who: [np.stack(parts, axis=-1) for parts in zip(*(_lists(table, f"{who}_{s}") for s in _SIGNAL_NAMES), strict=True)]
        for who in _SIGNALS
    }
    sequences = []
    for row in range(table.num_rows):
        sequence = TraceSequence(
            **{name: values[row] for name, values in text.items()},
            **{name: vectors[name][row] for name in _VECTORS},
            target_signals=signals["target"][row],
            draft_signals=signals["draft"][row],
            rollout_tokens=vectors["rollout_tokens"][row].reshape(-1, ROLLOUT_LENGTH),
            rollout_signals=signals["rollout"][row].reshape(-1, ROLLOUT_LENGTH, NUM_SIGNALS),
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
    whole = len(sequence.rollout_tokens) == starts == len(sequence.rollout_signals)
    if not (same and whole and 1 <= length <= metadata.max_new_tokens and sequence.finish in ("eos", "length")):
        raise TraceError(f"{path}: sequence {sequence.key} is inconsistent (lengths or finish). Record it again.")
