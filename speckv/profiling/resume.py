# SPDX-License-Identifier: Apache-2.0
"""The plan file of an unfinished recording, `plan.json` in its `.parts` folder, which a rerun must agree with."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from speckv.errors import ConfigError, TraceError
from speckv.files import write_atomically
from speckv.profiling.prompts import Prompt

Tokenised = tuple[Prompt, list[int]]


def digest(words: Sequence[str]) -> str:
    """Hash of words in their order."""
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def prompt_digest(prompt: Prompt, ids: Sequence[int]) -> str:
    """Hash of what is recorded of a prompt: id, task, split and token ids."""
    return digest([json.dumps([prompt.prompt_id, prompt.task, prompt.split, list(ids)])])


def recording_date(parts: Path, wanted: str) -> datetime:
    """The one date of a recording: that of its plan file, else the wanted one, else now.

    Args:
        parts: Folder of the shards; need not exist.
        wanted: Local date and time in ISO format, or "".

    Raises:
        ConfigError: if the wanted date is none.
        TraceError: if the folder has shards but no plan file of this version.
    """
    try:
        date = datetime.fromisoformat(wanted) if wanted else datetime.now().replace(microsecond=0)
    except ValueError as error:
        raise ConfigError(f"Expected date=YYYY-MM-DD or date=YYYY-MM-DDTHH:MM:SS, got {wanted!r}.") from error
    noted = _read(parts)
    return datetime.fromisoformat(noted["date"]) if noted else date


def check_resumed(
    parts: Path, plan: Mapping[str, Any], date: datetime, identity: Mapping[str, Any], chosen: Sequence[Tokenised]
) -> None:
    """Writes the plan file, or passes if a rerun is of the same recording as the plan file that is there.

    Args:
        parts: Folder of the shards.
        plan: Settings.
        date: Of the recording.
        identity: Metadata that all shards share.
        chosen: The prompts.

    Raises:
        TraceError: naming the first setting, metadata field or prompt that differs.
    """
    content = {
        "plan": plan,
        "date": date.isoformat(),
        "recording": identity,
        "prompts": {prompt.prompt_id: prompt_digest(prompt, ids) for prompt, ids in chosen},
    }
    content = json.loads(json.dumps(content))
    noted = _read(parts)
    if noted is None:
        write_atomically(parts / "plan.json", json.dumps(content, sort_keys=True, indent=1))
        return
    remedy = "delete the folder to record everything again, or choose another out="
    for part, what in (("plan", "plan"), ("recording", "recording")):
        name = _first_difference(noted[part], content[part])
        if name is not None:
            raise TraceError(
                f"{parts} holds shards of another {what}: {name} was {noted[part].get(name)!r} and is "
                f"{content[part].get(name)!r}. Restore it, {remedy}."
            )
    name = _first_difference(noted["prompts"], content["prompts"])
    if name is not None:
        change = "has another text, task, split or chat template"
        if name not in content["prompts"]:
            change = "is no longer among the prompts"
        elif name not in noted["prompts"]:
            change = "was not among the prompts"
        raise TraceError(
            f"Expected the prompts that {parts} began to record, but {name!r} {change}. Restore it, {remedy}."
        )


def _read(parts: Path) -> dict[str, Any] | None:
    note = parts / "plan.json"
    try:
        content: dict[str, Any] = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    except ValueError:
        content = {}
    if {"plan", "date", "recording", "prompts"} <= set(content):
        return content
    if any(parts.glob("*.parquet")):
        raise TraceError(
            f"Expected a plan.json of this version beside the shards in {parts}, found none. Finish the recording with "
            "the version that began it, delete the folder, or choose another out=."
        )
    return None


def _first_difference(noted: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    names = dict.fromkeys((*found, *noted))
    absent = object()
    return next((name for name in names if noted.get(name, absent) != found.get(name, absent)), None)
