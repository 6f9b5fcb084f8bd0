# SPDX-License-Identifier: Apache-2.0
"""Atomic writes, shipped files by name, and text formats."""

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from speckv.errors import SpecKVError, nearest


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yields a path to write to, which replaces `path` when the block ends without an error; makes missing folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        # Without it a power cut can leave the new name pointing at an empty file.
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path | str) -> Iterator[Path]:
    """Yields a new folder to fill, which replaces `path` as a whole when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    former = path.with_name(f".{path.name}.{os.getpid()}.former")
    try:
        partial.mkdir()
        yield partial
        if path.exists():
            path.rename(former)
        partial.rename(path)
    finally:
        for left in (partial, former):
            shutil.rmtree(left, ignore_errors=True)


def write_atomically(path: Path | str, content: bytes | str) -> None:
    """Writes a file, text as UTF-8, whole or not at all; makes missing folders."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def find_shipped(
    name_or_path: Path | str, folder: Path, suffix: str, error: type[SpecKVError], *, kind: str, otherwise: str
) -> Path:
    """Resolves the path of an existing file, or the name of a shipped one in `folder`; raises `error` if it is neither.

    Args:
        suffix: Of file names, with the dot.
        kind: Such as "trace file", for the message.
        otherwise: Advice that ends the message.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = folder / f"{name_or_path}{suffix}"
    if shipped.is_file():
        return shipped
    known = sorted(p.stem for p in folder.glob(f"*{suffix}"))
    raise error(
        f"Expected the path of a {kind} or the name of a shipped one {known}, got {str(name_or_path)!r}."
        f"{nearest(str(name_or_path), known)} {otherwise}"
    )


def canonical_json(content: Mapping[str, object]) -> str:
    r"""Renders JSON that is the same text for the same content: sorted keys, no NaN, one newline at the end.

    >>> canonical_json({"b": 1, "a": [0.5]})
    '{\n  "a": [\n    0.5\n  ],\n  "b": 1\n}\n'
    """
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    r"""Renders rows as CSV with LF line ends. Cells that hold a CR are quoted, which `csv.writer` leaves out.

    >>> csv_text([("a", 1), ("b\rc", 2)])
    'a,1\n"b\rc","2"\n'
    """
    buffer = io.StringIO()
    plain, quoted = (
        csv.writer(buffer, lineterminator="\n", quoting=quoting) for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    for row in rows:
        (quoted if any("\r" in str(cell) for cell in row) else plain).writerow(row)
    return buffer.getvalue()
