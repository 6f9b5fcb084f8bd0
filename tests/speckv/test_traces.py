# SPDX-License-Identifier: Apache-2.0
"""What is written is read back; what is damaged is refused in one line."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from speckv.errors import TraceError
from speckv.traces import (
    METADATA_KEY,
    TraceSequence,
    TraceSet,
    accepted_lengths,
    find_traces,
    merge,
    round_mantissa,
    split_validation,
)
from tests.fakes_traces import random_traces


@pytest.fixture
def traces() -> TraceSet:
    return random_traces(num_prompts=12)


def test_round_trip(traces: TraceSet, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    traces.save(path)
    again = TraceSet.load(path)
    assert again.metadata == traces.metadata
    assert len(again.sha256) == 64
    for before, after in zip(traces.sequences, again.sequences, strict=True):
        for f in fields(TraceSequence):
            a, b = getattr(before, f.name), getattr(after, f.name)
            if isinstance(a, np.ndarray):
                assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_a_truncated_file_is_refused(traces: TraceSet, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    traces.save(path)
    data = path.read_bytes()
    for size in (0, 10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(TraceError, match=r"truncated or damaged|malformed"):
            TraceSet.load(path)


def test_another_schema_version_is_refused(traces: TraceSet, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    TraceSet(metadata=replace(traces.metadata, schema_version=99), sequences=traces.sequences).save(path)
    with pytest.raises(TraceError, match="expected trace schema version 1, got 99"):
        TraceSet.load(path)


def test_other_parquet_files_are_refused(traces: TraceSet, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    traces.save(path)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({}), path)
    with pytest.raises(TraceError, match="no SpecKV trace"):
        TraceSet.load(path)
    kept = {METADATA_KEY: table.schema.metadata[METADATA_KEY]}
    pq.write_table(table.drop(["tokens"]).replace_schema_metadata(kept), path)
    with pytest.raises(TraceError, match="tokens"):
        TraceSet.load(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="found none"):
        TraceSet.load(tmp_path / "none.parquet")
    with pytest.raises(TraceError, match="name of a shipped one"):
        find_traces("no-such-trace")


def test_selections(traces: TraceSet) -> None:
    code = traces.select(split="train", compressions=["fp16"], tasks=["code"])
    assert {(s.split, s.compression, s.task) for s in code.sequences} == {("train", "fp16", "code")}
    with pytest.raises(TraceError, match=r"\['int8'\]"):
        traces.select(compressions=["int8"])


def test_validation_takes_whole_prompts_and_always_the_same() -> None:
    traces = random_traces(num_prompts=60)
    train, held_out = split_validation(traces)
    assert not set(train.prompt_ids) & set(held_out.prompt_ids)
    assert set(train.prompt_ids) | set(held_out.prompt_ids) == set(traces.prompt_ids)
    assert 4 <= len(held_out.prompt_ids) <= 20
    assert split_validation(traces)[1].prompt_ids == held_out.prompt_ids
    assert len(held_out.sequences) == 2 * len(held_out.prompt_ids)


def test_merge_refuses_doubles_and_strangers(traces: TraceSet) -> None:
    halves = [traces.select(compressions=[c]) for c in traces.compressions]
    merged = merge(halves)
    assert {s.key for s in merged.sequences} == {s.key for s in traces.sequences}
    with pytest.raises(TraceError, match="twice"):
        merge([halves[0], halves[0]])
    other = TraceSet(metadata=replace(traces.metadata, draft_id="other"), sequences=halves[1].sequences)
    with pytest.raises(TraceError, match="different metadata"):
        merge([halves[0], other])


def test_accepted_lengths_are_capped() -> None:
    assert accepted_lengths(np.ones(20, bool)).tolist() == [16] * 5 + list(range(15, 0, -1))
    assert accepted_lengths(np.array([False, True]), gamma_max=1).tolist() == [0, 1]


def test_rounding_keeps_thirteen_bits() -> None:
    values = np.random.default_rng(0).random(1000, dtype=np.float32)
    assert np.abs(round_mantissa(values) / values - 1).max() <= 2.0**-14
    assert round_mantissa(np.zeros(1, np.float32))[0] == 0
