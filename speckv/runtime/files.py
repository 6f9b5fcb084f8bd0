# SPDX-License-Identifier: Apache-2.0
"""Files written whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path


def write_atomically(path: Path | str, content: bytes | str) -> None:
    """Writes a file so that a reader, or a crash, never sees half of it.

    Args:
        path: Where it goes; missing folders are made.
        content: Bytes, or text that is stored as UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    data = content.encode() if isinstance(content, str) else content
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            # Without it a power cut can leave the new name pointing at an empty file.
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def canonical_json(content: Mapping[str, object]) -> str:
    r"""Renders JSON that is the same text for the same content: sorted keys, no NaN, one newline at the end.

    >>> canonical_json({"b": 1, "a": [0.5]})
    '{\n  "a": [\n    0.5\n  ],\n  "b": 1\n}\n'
    """
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
