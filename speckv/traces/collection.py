# SPDX-License-Identifier: Apache-2.0
"""Sets of recordings: selecting, splitting by prompt, joining, finding shipped ones."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from speckv.errors import TraceError
from speckv.files import find_shipped
from speckv.traces.parquet import read, write
from speckv.traces.schema import TraceMetadata, TraceSequence

ASSETS = Path(__file__).parents[1] / "assets" / "traces"


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
        kept = tuple(s for s in self.sequences if all(v is None or getattr(s, name) in v for name, v in wanted.items()))
        if not kept:
            asked = {name: sorted(v)[:8] for name, v in wanted.items() if v is not None}
            have = {name: sorted({getattr(s, name) for s in self.sequences})[:8] for name in wanted}
            raise TraceError(f"No recorded sequence matches {asked}; this trace holds, among others, {have}.")
        return TraceSet(metadata=self.metadata, sequences=kept, sha256=self.sha256)

    def save(self, path: Path | str) -> None:
        """Writes one Parquet file, whole or not at all."""
        write(Path(path), self.metadata, self.sequences)

    @staticmethod
    def load(path: Path | str) -> "TraceSet":
        """Reads a trace file.

        Raises:
            TraceError: if it is missing, truncated, no SpecKV trace, or of another schema version.
        """
        metadata, sequences, sha256 = read(Path(path))
        return TraceSet(metadata=metadata, sequences=sequences, sha256=sha256)


def find_traces(name_or_path: str | Path) -> Path:
    """Resolves a shipped trace's name or a path.

    Raises:
        TraceError: naming the shipped traces if it is neither.
    """
    otherwise = "Record one with `python -m speckv profile`."
    return find_shipped(name_or_path, ASSETS, ".parquet", TraceError, kind="trace file", otherwise=otherwise)


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
        TraceError: if they were recorded differently, hold a sequence twice, or hold two prompts under one id.
    """
    first = parts[0]
    limits: dict[str, int] = {}
    for part in parts:
        differing = _differing(first.metadata, part.metadata)
        # Older parts lack some limits.
        differing += [f"context_limits[{n}]" for n, v in part.metadata.context_limits.items() if limits.get(n, v) != v]
        if differing:
            raise TraceError(
                f"Expected shards of one recording, got shards with different metadata ({', '.join(differing)}). "
                "Merge them apart."
            )
        limits |= part.metadata.context_limits
    sequences = tuple(s for part in parts for s in part.sequences)
    keys = [s.key for s in sequences]
    if len(set(keys)) != len(keys):
        twice = next(k for k in keys if keys.count(k) > 1)
        raise TraceError(f"Expected every sequence once, got {twice} twice. Delete one of the shards that hold it.")
    _require_one_prompt_an_id(sequences)
    dtype = {name: value for part in parts for name, value in part.metadata.dtype.items()}
    device = "; ".join(dict.fromkeys(part.metadata.device for part in parts))
    metadata = replace(first.metadata, dtype=dtype, device=device, context_limits=limits)
    return TraceSet(metadata=metadata, sequences=tuple(sorted(sequences, key=_order)))


def recording_identity(metadata: TraceMetadata) -> dict[str, Any]:
    """Metadata that all shards of one recording share, by name."""
    varying = ("dtype", "versions", "notes", "device", "context_limits")
    return {name: value for name, value in asdict(metadata).items() if name not in varying}


def _differing(first: TraceMetadata, other: TraceMetadata) -> list[str]:
    wanted, found = recording_identity(first), recording_identity(other)
    return [name for name, value in wanted.items() if found[name] != value]


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
