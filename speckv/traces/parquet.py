# SPDX-License-Identifier: Apache-2.0
"""Trace files: one Parquet row a sequence, how it came to be in the file's metadata."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from speckv.errors import TraceError
from speckv.files import replacing
from speckv.traces.schema import ROLLOUT_LENGTH, SCHEMA_VERSION, TraceMetadata, TraceSequence
from speckv.types import GAMMA_MAX, NUM_SIGNALS

METADATA_KEY = b"speckv"

_TEXT = ("prompt_id", "task", "split", "compression", "finish")
_VECTORS: dict[str, type[np.generic]] = {
    "tokens": np.int32,
    "draft_tokens": np.int32,
    "accepted_length": np.int8,
    "eos_stop": np.int8,
}
_VECTORS |= {"accept_prob": np.float32, "rollout_start": np.int16}
_PROMPT = "prompt_tokens"
"""Column that older files lack."""
_SIGNALS = ("target", "draft", "rollout")
_SIGNAL_NAMES = ("entropy", "confidence", "margin")
_LATER_FIELDS = ("template_date", "context_limits")
"""Metadata that older files lack."""
_DICTIONARY_COLUMNS = ["task", "split", "compression", "finish"]
_SPLIT_COLUMNS = [f"{who}_{signal}.list.element" for who in _SIGNALS for signal in _SIGNAL_NAMES]


def write(path: Path, metadata: TraceMetadata, sequences: Sequence[TraceSequence]) -> None:
    """Writes one Parquet file, whole or not at all."""
    table = _to_table(metadata, sequences)
    with replacing(path) as partial:
        pq.write_table(
            table,
            partial,
            compression="zstd",
            compression_level=15,
            use_dictionary=_DICTIONARY_COLUMNS,
            column_encoding=dict.fromkeys(_SPLIT_COLUMNS, "BYTE_STREAM_SPLIT"),
        )


def read(path: Path) -> tuple[TraceMetadata, tuple[TraceSequence, ...], str]:
    """Returns metadata, sequences and the file's hash; see `TraceSet.load` for errors."""
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
        raise TraceError(f"{path} is a Parquet file but no SpecKV trace. Record one with `python -m speckv profile`.")
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
            f"{path}: expected gamma_max from 1 to {GAMMA_MAX}, got {content['gamma_max']!r}: roll-outs hold "
            f"{ROLLOUT_LENGTH} tokens. Record it again with this version of SpecKV."
        )
    return TraceMetadata(**content)


def _from_table(table: pa.Table, path: Path) -> tuple[TraceMetadata, tuple[TraceSequence, ...], str]:
    metadata = _read_metadata(table, path)
    text = {name: table.column(name).to_pylist() for name in (*_TEXT, "prompt_len")}
    vectors = {name: _lists(table, name) for name in (*_VECTORS, "rollout_tokens")}
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
            **_row(text, row),
            **_row({name: vectors[name] for name in _VECTORS}, row),
            target_signals=signals["target"][row],
            draft_signals=signals["draft"][row],
            rollout_tokens=vectors["rollout_tokens"][row].reshape(-1, ROLLOUT_LENGTH),
            rollout_signals=signals["rollout"][row].reshape(-1, ROLLOUT_LENGTH, NUM_SIGNALS),
            prompt_tokens=prompts[row],
        )
        _check(sequence, metadata, path)
        sequences.append(sequence)
    if not sequences:
        raise TraceError(f"{path} holds no sequence. Record it again.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return metadata, tuple(sequences), digest


def _row(columns: Mapping[str, Sequence[Any]], row: int) -> dict[str, Any]:
    return {name: values[row] for name, values in columns.items()}


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
