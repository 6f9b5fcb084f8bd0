# SPDX-License-Identifier: Apache-2.0
"""What is written is read back; what is damaged is refused in one line."""

import json
from dataclasses import fields, replace
from datetime import datetime
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


def with_prompts(traces: TraceSet, seed: int = 0) -> TraceSet:
    """The same recordings with token ids of their prompts, those of one id alike at every compression."""
    rng = np.random.default_rng(seed)
    tokens = {name: rng.integers(0, 50, 200, dtype=np.int32) for name in sorted(traces.prompt_ids)}
    sequences = tuple(replace(s, prompt_len=200, prompt_tokens=tokens[s.prompt_id]) for s in traces.sequences)
    return replace(traces, sequences=sequences)


def test_a_round_trip_with_prompts(traces: TraceSet, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    facts = {"template_date": "2026-11-30T12:00:00", "context_limits": {"target": 128, "draft": 64}}
    traces = with_prompts(replace(traces, metadata=replace(traces.metadata, **facts)))  # type: ignore[arg-type]
    traces.save(path)
    again = TraceSet.load(path)
    assert again.metadata == traces.metadata
    assert again.metadata.template_datetime == datetime(2026, 11, 30, 12)
    for before, after in zip(traces.sequences, again.sequences, strict=True):
        assert after.prompt_tokens.dtype == np.int32
        np.testing.assert_array_equal(before.prompt_tokens, after.prompt_tokens)
    cut = replace(traces.sequences[0], prompt_tokens=traces.sequences[0].prompt_tokens[:-1])
    replace(traces, sequences=(cut,)).save(path)
    with pytest.raises(TraceError, match="inconsistent"):
        TraceSet.load(path)


def test_files_of_older_versions_load_with_defaults(traces: TraceSet, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    traces.save(path)
    table = pq.read_table(path)
    assert "prompt_tokens" not in table.column_names
    content = json.loads(table.schema.metadata[METADATA_KEY])
    for name in ("template_date", "context_limits"):
        del content[name]
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(content)}), path)
    again = TraceSet.load(path)
    assert again.metadata == traces.metadata
    assert (again.metadata.template_datetime, again.metadata.context_limits) == (None, {})
    assert not any(len(s.prompt_tokens) for s in again.sequences)
    del content["vocab_size"]
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(content)}), path)
    with pytest.raises(TraceError, match=r"differ from the schema: \['vocab_size'\]"):
        TraceSet.load(path)


def test_further_settings_of_sampling_are_kept(traces: TraceSet, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    sampling = traces.metadata.sampling | {"repetition_penalty": 1.1}
    replace(traces, metadata=replace(traces.metadata, sampling=sampling)).save(path)
    assert TraceSet.load(path).metadata.sampling == sampling


def test_a_prompt_is_held_to_the_recorded_one(traces: TraceSet) -> None:
    sequence = replace(traces.sequences[0], prompt_id="p0", prompt_len=3)
    sequence.require_prompt([5, 6, 7])
    with pytest.raises(TraceError, match="Expected prompt p0 to have 3 tokens as recorded, got 2"):
        sequence.require_prompt([5, 6])
    sequence = replace(sequence, prompt_tokens=np.array([5, 6, 7], np.int32))
    sequence.require_prompt([5, 6, 7])
    with pytest.raises(TraceError, match="p0 to have the recorded token ids, got others from token 1 on"):
        sequence.require_prompt([5, 8, 8])


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


def test_merge_refuses_two_prompts_under_one_id(traces: TraceSet) -> None:
    halves = [traces.select(compressions=[c]) for c in traces.compressions]
    merge([with_prompts(half) for half in halves])
    merge([with_prompts(halves[0]), halves[1]])  # an older file does not hold its prompts
    with pytest.raises(
        TraceError, match="Expected one prompt under the id p0, got other token ids at nf4 than at fp16"
    ):
        merge([with_prompts(halves[0]), with_prompts(halves[1], seed=1)])


def test_merge_refuses_other_dates_and_contexts(traces: TraceSet) -> None:
    one, two = (traces.select(compressions=[c]) for c in traces.compressions)

    def with_facts(part: TraceSet, **facts: object) -> TraceSet:
        return replace(part, metadata=replace(part.metadata, **facts))  # type: ignore[arg-type]

    limited = with_facts(one, context_limits={"target": 128, "draft": 64})
    assert merge([two, limited]).metadata.context_limits == {"target": 128, "draft": 64}
    with pytest.raises(TraceError, match=r"different metadata \(context_limits\[draft\]\)"):
        merge([limited, with_facts(two, context_limits={"target": 128, "draft": 32})])
    with pytest.raises(TraceError, match=r"different metadata \(template_date\)"):
        merge([with_facts(one, template_date="2026-11-30T12:00:00"), two])


def test_accepted_lengths_are_capped() -> None:
    assert accepted_lengths(np.ones(20, bool)).tolist() == [16] * 5 + list(range(15, 0, -1))
    assert accepted_lengths(np.array([False, True]), gamma_max=1).tolist() == [0, 1]
    assert accepted_lengths(np.array([False, True, True, True])).tolist() == [0, 3, 2, 1]


def test_rounding_keeps_thirteen_bits() -> None:
    values = np.random.default_rng(0).random(1000, dtype=np.float32)
    assert np.abs(round_mantissa(values) / values - 1).max() <= 2.0**-14
    assert round_mantissa(np.zeros(1, np.float32))[0] == 0
