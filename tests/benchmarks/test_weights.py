# SPDX-License-Identifier: Apache-2.0
"""Weights carried in parts: whole again to the byte, resumable, and damage is named."""

import json
import logging
from pathlib import Path

import pytest

from benchmarks import weights
from benchmarks.gpu import checks
from benchmarks.gpu.stage import Settings
from benchmarks.weights import MANIFEST, join, split
from speckv.errors import DataError

CONTENT = {"a.gguf": bytes(range(256)) * 10, "b.gguf": b"speculate"}
PART = 1000


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    files = []
    for name, content in CONTENT.items():
        files.append(tmp_path / "source" / name)
        files[-1].parent.mkdir(exist_ok=True)
        files[-1].write_bytes(content)
    split(files, tmp_path / "parts", part_bytes=PART)
    return tmp_path / "parts"


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def test_files_come_back_to_the_byte(parts: Path, tmp_path: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in parts.glob("*.part-*")}
    assert sizes == {"a.gguf.part-0000": 1000, "a.gguf.part-0001": 1000, "a.gguf.part-0002": 560, "b.gguf.part-0000": 9}
    joined = join(parts, tmp_path / "whole")
    assert {path.name: path.read_bytes() for path in joined} == CONTENT


def test_what_is_there_and_right_is_kept(parts: Path, tmp_path: Path) -> None:
    before = stamps(parts)
    (parts / "a.gguf.part-0001").write_bytes(b"half of it")  # in place: the inode stays until it is replaced
    split([tmp_path / "source" / "a.gguf"], parts, part_bytes=PART)
    after = stamps(parts)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"a.gguf.part-0001", MANIFEST}
    first = [path.stat().st_ino for path in join(parts, tmp_path / "whole")]
    (tmp_path / "whole" / "b.gguf").write_bytes(b"damaged!!")
    again = [path.stat().st_ino for path in join(parts, tmp_path / "whole")]
    assert first[0] == again[0]
    assert (tmp_path / "whole" / "b.gguf").read_bytes() == CONTENT["b.gguf"]


def test_splitting_another_file_later_keeps_the_first(parts: Path, tmp_path: Path) -> None:
    third = tmp_path / "c.gguf"
    third.write_bytes(b"later")
    split([third], parts, part_bytes=PART)
    assert [path.name for path in join(parts, tmp_path / "whole")] == ["a.gguf", "b.gguf", "c.gguf"]


def test_every_bad_part_is_named_and_good_files_are_joined(parts: Path, tmp_path: Path) -> None:
    (parts / "a.gguf.part-0000").unlink()
    (parts / "a.gguf.part-0001").write_bytes(b"\0" * 1000)
    (parts / "a.gguf.part-0002").write_bytes(b"short")
    with pytest.raises(DataError) as caught:
        join(parts, tmp_path / "whole")
    for words in (
        "a.gguf.part-0000 is missing",
        "a.gguf.part-0001 is damaged",
        "a.gguf.part-0002 has 5 bytes, not 560",
        "Carry these again",
    ):
        assert words in str(caught.value)
    assert [path.name for path in (tmp_path / "whole").iterdir()] == ["b.gguf"]


def test_a_manifest_that_contradicts_itself_leaves_no_file(parts: Path, tmp_path: Path) -> None:
    text = (parts / MANIFEST).read_text(encoding="utf-8")
    content = json.loads(text)
    content["files"][1]["whole"]["sha256"] = "0" * 64
    (parts / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match="contradicts itself"):
        join(parts, tmp_path / "whole")
    assert not (tmp_path / "whole" / "b.gguf").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "Expected a manifest at"),
        ("{", "is not a manifest of parts"),
        ('{"format": "other", "files": []}', "expected format 'speckv-parts-1', got 'other'"),
        ('{"format": "speckv-parts-1", "files": [{"whole": {}, "parts": []}]}', "is not a manifest of parts"),
        (
            '{"format": "speckv-parts-1", "files": [{"whole": {"name": "../x", "size": 1, "sha256": ""}}]}',
            "plain name of a file in the manifest, got '../x'",
        ),
    ],
)
def test_bad_manifests_are_refused(text: str | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=says.replace(".", r"\.")):
        join(tmp_path, tmp_path)


def test_files_must_be_there_and_differ_in_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found none at"):
        split([tmp_path / "no.gguf"], tmp_path)
    with pytest.raises(DataError, match="different names"):
        split([tmp_path / "a", tmp_path / "b" / "a"], tmp_path)


def test_the_program_says_what_it_did_or_what_is_wrong(
    parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert weights.main(["join", str(parts), "--to", str(tmp_path / "whole")]) == 0
    assert "a.gguf: whole and verified" in caplog.text
    assert weights.main(["split", str(tmp_path / "no"), "--to", str(parts)]) == 1
    assert "Check the paths" in caplog.text


def test_the_stage_joins_in_place_and_names_what_the_pair_lacks(parts: Path) -> None:
    pieces = checks.weights(Settings(device="cpu", weights=str(parts)))
    assert pieces["join"](0.0) == ["a.gguf", "b.gguf"]
    with pytest.raises(DataError, match=r"missing: qwen2\.5-coder-1\.5b-instruct-q4_k_m\.gguf, qwen2\.5-coder-0\.5b"):
        pieces["files"](0.0)
