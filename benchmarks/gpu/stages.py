# SPDX-License-Identifier: Apache-2.0
"""The stages, their budgets, and how they run: each in a process of its own, which a fault or the clock may end.

A device that has once refused a kernel refuses everything else in that process, hence the processes. The report is
rewritten after each stage; stages that are not asked for keep what an earlier run found.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.settings import OFFLINE, Settings
from benchmarks.gpu.work import ERROR, RUNNING, Entry
from benchmarks.gpu.worker import run_stage
from speckv.files import write_atomically

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
SOFT_SHARE = 0.85
"""Share of the budget after which no other piece is begun; the rest is for what is under way."""

Runner = Callable[["Stage", Settings], Entry]
Report = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage.

    Attributes:
        name: Its key in the report.
        what: In one line.
        function: `module:function`, called with settings and a `Work`; imported where the stage runs.
        budget_s: Seconds after which it is ended.
    """

    name: str
    what: str
    function: str
    budget_s: float


def _stage(name: str, budget_s: float, what: str) -> Stage:
    return Stage(name=name, what=what, function=f"benchmarks.gpu.{name}:run", budget_s=budget_s)


STAGES = (
    _stage("machine", 60, "device, driver, versions, and what is missing"),
    _stage("weights", 210, "weights joined from their parts, verified, and converted"),
    _stage("tests", 120, "tests marked gpu"),
    _stage("lossless", 210, "random gammas against plain decoding, by dtype and compression"),
    _stage("calibration", 300, "cost tables of the pairs"),
    _stage("throughput", 210, "plain, best fixed gamma, controllers and transformers' own, live"),
    _stage("breakdown", 90, "where a step's time goes"),
)
"""In the order they run; their budgets add up to 20 minutes."""


def run_all(
    stages: Sequence[Stage], settings: Settings, out: Path | Callable[[Report], Path], *, runner: Runner, command: str
) -> tuple[Report, Path]:
    """Runs stages one after the other and rewrites the report after each.

    Args:
        stages: Which, in order.
        settings: Of the run.
        out: The report's file, or what names it from the report so far.
        runner: `isolated`, or `in_process` for rehearsals.
        command: What the user typed, for the report.

    Returns:
        The report, and the file it stands in.
    """
    found: dict[str, Entry] = {}
    report: Report = {}
    path = Path()
    for stage in stages:
        logger.info("%s: %s, at most %.0f s", stage.name, stage.what, stage.budget_s)
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = runner(stage, settings)
        found[stage.name] = {
            "what": stage.what,
            "budget_s": stage.budget_s,
            "began": began,
            "command": command,
            **entry,
        }
        report = _report(settings, found)
        path = out(report) if callable(out) else out
        report["stages"] = _earlier(path) | found
        write_atomically(path, placeless(json.dumps(report, indent=1)) + "\n")
        for line in describe(stage.name, entry):
            logger.info("%s", line)
    return report, path


def _report(settings: Settings, found: dict[str, Entry]) -> Report:
    note = (
        "a rehearsal on tiny random models: no number here means anything" if settings.tiny else "batch 1, one device"
    )
    return {"what": f"SpecKV on one accelerator, by stage; {note}", "device": settings.device, "stages": dict(found)}


def _earlier(path: Path) -> dict[str, Entry]:
    if not path.is_file():
        return {}
    stages: dict[str, Entry] = json.loads(path.read_text(encoding="utf-8")).get("stages", {})
    return stages


def placeless(text: str) -> str:
    """Drops from a text where this checkout, this Python and this user's files lie: a report is to be published."""
    for place, name in ((str(ROOT), "."), (sys.prefix, "PYTHON"), (str(Path.home()), "~")):
        if len(place) > 1:
            text = text.replace(place, name)
    return text


def describe(name: str, entry: Entry) -> list[str]:
    """Lines about a stage that has ended: its status, and what failed."""
    lines = [f"{name}: {entry['status']} after {entry['seconds']:.1f} s"]
    if "error" in entry:
        lines.append(f"  {entry['error']}")
    pieces = entry.get("pieces", {}).items()
    return lines + [f"  {key}: {piece['status']}: {piece['error']}" for key, piece in pieces if "error" in piece]


def in_process(stage: Stage, settings: Settings) -> Entry:
    """Runs a stage here: quick, but what ends the process ends the run."""
    return run_stage(stage.function, settings, None, SOFT_SHARE * stage.budget_s)


def isolated(stage: Stage, settings: Settings) -> Entry:
    """Runs a stage in a process of its own and ends it, and all it started, when its budget is used up."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="speckv-gpu-") as folder:
        part, log = Path(folder) / "part.json", Path(folder) / "log.txt"
        arguments = [stage.function, settings.to_json(), str(part), str(SOFT_SHARE * stage.budget_s)]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", "benchmarks.gpu.worker", *arguments],
                cwd=ROOT,
                env={**os.environ, **OFFLINE},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout=stage.budget_s)
                ended = f"its process ended with code {code}"
            except subprocess.TimeoutExpired:
                ended = f"ended by the clock after {stage.budget_s:.0f} s"
            finally:
                _end(process)
        entry: Entry = json.loads(part.read_text(encoding="utf-8")) if part.is_file() else {"status": RUNNING}
        if entry["status"] == RUNNING:
            tail = log.read_text(encoding="utf-8", errors="replace")[-4000:]
            entry |= {"status": ERROR, "error": ended, "log": tail.splitlines()}
            for piece in entry.get("pieces", {}).values():
                if piece["status"] == RUNNING:
                    piece |= {"status": ERROR, "error": ended}
    return entry | {"seconds": time.monotonic() - started}


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process that leads a session of its own, with everything it started."""
    with contextlib.suppress(ProcessLookupError):  # all of it may be gone already
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
