# SPDX-License-Identifier: Apache-2.0
"""The report's file: one entry a stage, no place of the machine, and what earlier runs found kept."""

import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.settings import ROOT, Settings
from benchmarks.gpu.work import SKIPPED, Entry
from speckv.files import write_atomically

Report = dict[str, Any]


def add(
    settings: Settings, found: Mapping[str, Entry], out: Path | Callable[[Report], Path], places: Mapping[str, str]
) -> tuple[Report, Path]:
    """Writes what was found beside what earlier runs did; a stage that was skipped now keeps what it found then.

    Args:
        settings: Of the run.
        found: Stage -> entry.
        out: The report's file, or what names it from the report.
        places: Folders that the report is not to name -> what stands for them.

    Returns:
        The report, and its file.
    """
    note = (
        "a rehearsal on tiny random models: no number here means anything" if settings.tiny else "batch 1, one device"
    )
    report: Report = {"what": f"SpecKV on one accelerator, by stage; {note}", "device": settings.device}
    path = out(report | {"stages": dict(found)}) if callable(out) else out
    before = _earlier(path)
    now = {name: entry for name, entry in found.items() if entry["status"] != SKIPPED or name not in before}
    report["stages"] = before | now
    write_atomically(path, json.dumps(without_places(report, places), indent=1) + "\n")
    return report, path


def _earlier(path: Path) -> dict[str, Entry]:
    if not path.is_file():
        return {}
    stages: dict[str, Entry] = json.loads(path.read_text(encoding="utf-8")).get("stages", {})
    return stages


def without_places(content: Any, places: Mapping[str, str]) -> Any:
    """A report's content, all of its texts made `placeless`."""
    if isinstance(content, str):
        return placeless(content, places)
    if isinstance(content, Mapping):
        return {placeless(str(key), places): without_places(value, places) for key, value in content.items()}
    return [without_places(value, places) for value in content] if isinstance(content, list | tuple) else content


def placeless(text: str, places: Mapping[str, str]) -> str:
    """Drops from a text where things lie on this machine: a report is to be published.

    Args:
        text: Of a report.
        places: Folders -> what stands for them, beside those of this checkout, this Python and this user; folders for
            temporary files become "TMP", with all that is below them but the file's name.

    >>> placeless("/srv/models/a.gguf and /tmp/x1/y/z.py, not /srv/models2", {"/srv/models": "WEIGHTS"})
    'WEIGHTS/a.gguf and TMP/z.py, not /srv/models2'
    """
    known = {**places, str(Path.home()): "~", sys.prefix: "PYTHON", str(ROOT): "."}
    for place in sorted(known, key=len, reverse=True):  # a folder before the one that holds it
        if len(place) > 1:
            text = re.sub(re.escape(place) + r"(?![\w-])", known[place].replace("\\", r"\\"), text)
    temporary = "|".join(map(re.escape, {"/tmp", "/var/tmp", tempfile.gettempdir()}))
    return re.sub(rf"(?<![\w.~-])(?:{temporary})/(?:[^\s\"'/,:;<>()\[\]]+/)*", "TMP/", text)


def describe(name: str, entry: Entry) -> list[str]:
    """Lines about a stage that has ended: its status, and what failed."""
    lines = [f"{name}: {entry['status']} after {entry['seconds']:.1f} s"]
    if "error" in entry:
        lines.append(f"  {entry['error']}")
    pieces = entry.get("pieces", {}).items()
    lines += [f"  {key}: {piece['status']}: {piece['error']}" for key, piece in pieces if "error" in piece]
    return lines + [f"  warning: {text}" for text in entry.get("warnings", [])]
