# SPDX-License-Identifier: Apache-2.0
"""How a stage runs: in a process of its own, which a fault, the clock or a signal may end, or in this one.

A device that has once refused a kernel refuses everything else in that process, hence the processes.
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
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu.settings import OFFLINE, ROOT, Settings
from benchmarks.gpu.stages import Stage
from benchmarks.gpu.work import ERROR, RUNNING, Entry, clear
from benchmarks.gpu.worker import run_stage

logger = logging.getLogger(__name__)
END_S = 30.0
"""Seconds that an ended process has to be gone: one that is stuck in a driver may never be."""


def soft_s(budget_s: float) -> float:
    """Seconds of a budget after which no other piece is begun; the rest is for what is under way.

    >>> soft_s(200), soft_s(90), soft_s(30)
    (170.0, 65.0, 20.0)
    """
    return budget_s - max(0.15 * budget_s, min(25.0, budget_s / 3))


def in_process(stage: Stage, settings: Settings, part: Path | None) -> Entry:
    """Runs a stage here: quick, but what ends the process ends the run."""
    return run_stage(stage.function, settings, part, soft_s(stage.budget_s))


def isolated(stage: Stage, settings: Settings, part: Path | None, *, stop: Sequence[int] = ()) -> Entry:
    """Runs a stage in a process of its own and ends it, and all it started, when its budget is used up.

    Args:
        stage: Which.
        settings: Handed on.
        part: File in which the entry grows; a temporary one by default.
        stop: The stage is ended once a signal's number is in it.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="speckv-gpu-") as folder:
        part, log = part or Path(folder) / "part.json", Path(folder) / "log.txt"
        clear(part)  # a run that was killed may have left one
        arguments = [stage.function, settings.to_json(), str(part), str(soft_s(stage.budget_s)), str(os.getpid())]
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
                ended = _wait(process, stage.budget_s, stop)
            finally:
                gone = _end(process)
        entry: Entry = json.loads(part.read_text(encoding="utf-8")) if part.is_file() else {"status": RUNNING}
        if entry["status"] == RUNNING:
            ended += "" if gone else f"; it is still there {END_S:.0f} s later, and may hold the device"
            tail = log.read_text(encoding="utf-8", errors="replace")[-4000:]
            entry |= {"status": ERROR, "error": ended, "log": tail.splitlines()}
            for piece in entry.get("pieces", {}).values():
                if piece["status"] == RUNNING:
                    piece |= {"status": ERROR, "error": ended}
    return entry | {"seconds": time.monotonic() - started}


def _wait(process: "subprocess.Popen[bytes]", budget_s: float, stop: Sequence[int]) -> str:
    """Waits for a process, the clock or a signal, and says which it was."""
    end = time.monotonic() + budget_s
    while not stop:
        left_s = end - time.monotonic()
        if left_s <= 0:
            return f"ended by the clock after {budget_s:.0f} s"
        with contextlib.suppress(subprocess.TimeoutExpired):
            return f"its process ended with code {process.wait(timeout=min(0.5, left_s))}"
    return f"ended by {signal.Signals(stop[0]).name}"


def _end(process: "subprocess.Popen[bytes]") -> bool:
    """Ends a process that leads a session of its own, with everything it started; False where it does not go."""
    with contextlib.suppress(ProcessLookupError):  # all of it may be gone already
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(timeout=END_S)
    except subprocess.TimeoutExpired:
        logger.warning("Process %d was ended and is still there after %.0f s.", process.pid, END_S)
        return False
    return True


@contextlib.contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Gives a list that signals which ask the program to end go into, in place of ending it at once.

    What is ignored stays ignored: under `nohup` a run outlives its terminal.
    """
    came: list[int] = []
    asked = [s for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT) if signal.getsignal(s) is not signal.SIG_IGN]
    before = {which: signal.signal(which, lambda number, _: came.append(number)) for which in asked}
    try:
        yield came
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
