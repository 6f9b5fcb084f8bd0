# SPDX-License-Identifier: Apache-2.0
"""Reads prompts files: JSON Lines with `id`, `task` and `prompt`, and an optional `split`."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from speckv.errors import DataError

EXAMPLES = Path(__file__).resolve().parents[1] / "assets" / "prompts" / "examples.jsonl"
"""Eight prompts, two of each task, three of them test prompts."""
REQUIRED = ("id", "task", "prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt; results are grouped by its task, and its split is "train" or "test"."""

    prompt_id: str
    task: str
    text: str
    split: str


def read_prompts(paths: Iterable[Path | str]) -> list[Prompt]:
    """Reads files in order, and of folders the *.jsonl in name order; a DataError names file and line."""
    prompts: list[Prompt] = []
    seen: dict[str, Path] = {}
    for file in _expand(paths):
        for number, line in enumerate(_lines(file), start=1):
            if not line.strip():
                continue
            prompt = _parse(line, file, number)
            if prompt.prompt_id in seen:
                raise DataError(
                    f"{file}:{number}: expected every id once, got {prompt.prompt_id!r} again (first in "
                    f"{seen[prompt.prompt_id]}). Rename one."
                )
            seen[prompt.prompt_id] = file
            prompts.append(prompt)
    if not prompts:
        raise DataError(f"Expected at least one prompt in {[str(p) for p in paths]}, found none.")
    return prompts


def first_of_each(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """Keeps the first `limit` prompts of every (split, task), in their order."""
    counts: dict[tuple[str, str], int] = {}
    kept = []
    for prompt in prompts:
        group = (prompt.split, prompt.task)
        counts[group] = counts.get(group, 0) + 1
        if counts[group] <= limit:
            kept.append(prompt)
    return kept


def _expand(paths: Iterable[Path | str]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            files += sorted(file for file in path.glob("*.jsonl") if file.is_file())
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"Expected a prompts file or folder at {path}, found nothing. Check the path.")
    return files


def _lines(file: Path) -> list[str]:
    """`str.splitlines` would also cut a prompt at U+2028."""
    try:
        text = file.read_text(encoding="utf-8")  # every line end becomes LF
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: expected UTF-8 text, got other bytes at offset {error.start}.") from error
    except OSError as error:
        raise DataError(f"{file}: expected a readable prompts file, got {error}. Check the path.") from error
    # Some editors begin a file with a byte order mark; joined files have one in the middle as well.
    return [line.removeprefix("\ufeff") for line in text.split("\n")]


def _parse(line: str, file: Path, number: int) -> Prompt:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}:{number}: expected one JSON object a line, got {line[:60]!r} ({error}).") from error
    if not isinstance(record, dict):
        raise DataError(f"{file}:{number}: expected a JSON object, got {type(record).__name__}.")
    bad = [name for name in REQUIRED if not isinstance(record.get(name), str) or not record[name].strip()]
    if bad:
        raise DataError(
            f"{file}:{number}: expected non-empty text in {', '.join(REQUIRED)}; "
            f"{', '.join(bad)} is missing or no text."
        )
    for name in REQUIRED:
        _require_unicode(record[name], f"{file}:{number}: {name}")
    split = record.get("split") or _split_of(record["id"])
    if split not in ("train", "test"):
        raise DataError(f'{file}:{number}: expected split "train" or "test", got {split!r}.')
    return Prompt(prompt_id=record["id"], task=record["task"], text=record["prompt"], split=split)


def _require_unicode(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: expected Unicode text, got the lone surrogate \\u{ord(text[error.start]):04x} at character "
            f"{error.start}, which no tokenizer can encode. Write the whole character."
        ) from error


def _split_of(prompt_id: str) -> str:
    return "test" if int(hashlib.sha256(f"split:{prompt_id}".encode()).hexdigest()[:8], 16) % 3 == 0 else "train"
