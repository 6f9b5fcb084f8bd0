# SPDX-License-Identifier: Apache-2.0
"""Prompts files: what is read, and one clear error for each thing that can be wrong."""

import json
from pathlib import Path

import pytest

from speckv.errors import DataError
from speckv.profiling.prompts import EXAMPLES, first_of_each, read_prompts


def write(path: Path, *records: object) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records), encoding="utf-8")
    return path


def test_files_folders_blank_lines_and_splits(tmp_path: Path) -> None:
    write(
        tmp_path / "a.jsonl",
        {"id": "1", "task": "code", "prompt": "x", "split": "test"},
        "",
        {"id": "2", "task": "code", "prompt": "y"},
    )
    write(tmp_path / "b.jsonl", {"id": "3", "task": "math", "prompt": "z", "split": "train"})
    prompts = read_prompts([tmp_path])
    assert [p.prompt_id for p in prompts] == ["1", "2", "3"]
    assert prompts[0].split == "test"
    assert prompts[1].split == read_prompts([tmp_path / "a.jsonl"])[1].split  # by id: the same every time


def test_the_first_of_each_task_and_split(tmp_path: Path) -> None:
    records = [{"id": f"{t}{i}", "task": t, "prompt": "x", "split": "train"} for i in range(3) for t in ("a", "b")]
    kept = first_of_each(read_prompts([write(tmp_path / "p.jsonl", *records)]), 2)
    assert [p.prompt_id for p in kept] == ["a0", "b0", "a1", "b1"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{broken"], r"p.jsonl:1: expected one JSON object a line, got '\{broken'"),
        ([[1, 2]], "p.jsonl:1: expected a JSON object, got list"),
        ([{"id": "1", "task": "t"}], "prompt is missing"),
        ([{"id": 1, "task": "t", "prompt": "x"}], "id is missing or no text"),
        ([{"id": "1", "task": "t", "prompt": " "}], "prompt is missing"),
        ([{"id": "1", "task": "t", "prompt": "x", "split": "dev"}], "got 'dev'"),
        ([{"id": "1", "task": "t", "prompt": "x"}] * 2, r"p.jsonl:2: expected every id once, got '1' again"),
        ([""], "found none"),
        (["[" * 100_000], "p.jsonl:1: expected one JSON object a line"),
        (['{"id": ' + "1" * 5000 + "}"], "p.jsonl:1: expected one JSON object a line"),
        (
            ['{"id": "1", "task": "t", "prompt": "a\\ud83d"}'],
            r"p.jsonl:1: prompt: .* lone surrogate \\ud83d at char.* 1",
        ),
        (['{"id": "\\ud83d", "task": "t", "prompt": "a"}'], "p.jsonl:1: id: .* lone surrogate"),
    ],
)
def test_bad_lines(tmp_path: Path, lines: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_prompts([write(tmp_path / "p.jsonl", *lines)])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_marks(tmp_path: Path, end: str, mark: str) -> None:
    lines = [mark + json.dumps({"id": name, "task": "t", "prompt": "x"}) for name in "ab"]
    (tmp_path / "p.jsonl").write_bytes(end.join([*lines, ""]).encode())
    assert [p.prompt_id for p in read_prompts([tmp_path / "p.jsonl"])] == ["a", "b"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
def test_separators_inside_a_prompt_do_not_end_a_line(tmp_path: Path, separator: str) -> None:
    text = f"one{separator}two"
    raw = json.dumps({"id": "a", "task": "t", "prompt": text}, ensure_ascii=False)
    escaped = json.dumps({"id": "b", "task": "t", "prompt": text})
    # JSON allows characters below U+0020 as escapes alone.
    file = write(tmp_path / "p.jsonl", escaped if separator < " " else raw)
    assert read_prompts([file])[0].text == text


def test_a_folder_of_that_name_is_no_prompts_file(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    write(tmp_path / "a.jsonl", {"id": "1", "task": "t", "prompt": "x"})
    assert len(read_prompts([tmp_path])) == 1


def test_missing_files_and_other_encodings(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found nothing"):
        read_prompts([tmp_path / "none.jsonl"])
    (tmp_path / "latin.jsonl").write_bytes('{"id": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_prompts([tmp_path / "latin.jsonl"])


def test_the_shipped_examples_are_enough_to_learn_from_and_to_compare_on() -> None:
    prompts = read_prompts([EXAMPLES])
    assert [sum(p.split == split for p in prompts) for split in ("train", "test")] == [5, 3]
    assert len({p.task for p in prompts}) == 4
