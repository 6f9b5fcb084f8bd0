# SPDX-License-Identifier: Apache-2.0
"""Runs of a study as processes of their own, some at once, each with one thread; what is finished is not run again."""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from agents.runs.console import Console, InterruptedTraining, StopRequest, catch_signals
from agents.runs.run_folder import EVALUATION, LAST, OVERRIDES
from speckv.errors import ConfigError, SpecKVError
from speckv.evaluation.report import PER_PROMPT

LOG = "log.txt"
ERROR = "speckv: "
"""How a program begins the line of an error that it explains."""
PROGRAM = Path(__file__).resolve().parents[2] / "train.py"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
POLL_S = 0.2
_TAIL = 800


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training run.

    Attributes:
        arm: Which arm.
        seed: Its seed.
        overrides: What `train.py` is told, seed included and output not.
        folder: Of the run.
    """

    arm: str
    seed: int
    overrides: tuple[str, ...]
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether the run has been evaluated."""
        return (self.folder / EVALUATION / PER_PROMPT).is_file()

    @property
    def stopped(self) -> bool:
        """Whether the run left a checkpoint to go on from."""
        return (self.folder / LAST).is_file()

    @property
    def begun(self) -> bool:
        """Whether a run began in the folder, or was stopped while it wrote its first file."""
        if not self.folder.is_dir():
            return False
        return (self.folder / OVERRIDES).is_file() or all(p.name.endswith(".partial") for p in self.folder.iterdir())

    @property
    def command(self) -> list[str]:
        """What to run: from where it stopped, if it left a checkpoint."""
        if self.stopped:
            return [sys.executable, str(PROGRAM), f"resume={self.folder}"]
        return [sys.executable, str(PROGRAM), *self.overrides, f"output={self.folder}"]

    def require_same(self) -> None:
        """Passes if what is in the folder was told the same.

        Raises:
            ConfigError: if it was told something else.
        """
        path = self.folder / OVERRIDES
        if not path.is_file():
            return
        told = [line for line in path.read_text(encoding="utf-8").split("\n")[:-1] if not line.startswith("output=")]
        if told != list(self.overrides):
            raise ConfigError(
                f"Expected {self.folder} to hold a run of {list(self.overrides)}, got {told}. Name another output."
            )


def run_jobs(jobs: Sequence[Job], processes: int, console: Console) -> None:
    """Runs every job that is not finished, at most some at once.

    Args:
        jobs: In the order in which they begin.
        processes: At once.
        console: Takes a line a run.

    Raises:
        SpecKVError: if a run failed, with the end of what it said; the others that had begun are stopped.
        InterruptedTraining: after the runs have saved what they have, if a signal came.
    """
    for job in jobs:
        job.require_same()
    waiting = [job for job in jobs if not job.finished]
    console.write(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them finished before; {processes} at once")
    running: dict[Job, subprocess.Popen[bytes]] = {}
    with catch_signals() as request, stopped_at_the_end(running.values()):
        while waiting or running:
            require_no(request)
            while waiting and len(running) < processes:
                job = waiting.pop(0)
                running[job] = begin(job)
            for job in [j for j, process in running.items() if process.poll() is not None]:
                status = running.pop(job).returncode
                _require_success(job, status)
                left = len(waiting) + len(running)
                console.write(f"{job.arm}, seed {job.seed}: done, {left} to go")
            time.sleep(POLL_S)


@contextmanager
def stopped_at_the_end(processes: Iterable["subprocess.Popen[bytes]"]) -> Iterator[None]:
    """Stops what still runs when the block is left: a learner saves a checkpoint then."""
    try:
        yield
    finally:
        left = list(processes)
        for process in left:
            process.terminate()
        for process in left:
            process.wait()


def require_no(request: StopRequest) -> None:
    """Passes if nobody asked to stop.

    Raises:
        InterruptedTraining: if a signal came.
    """
    if request.signum is not None:
        raise InterruptedTraining(request.signum, "run the same command again to go on where it stopped")


def begin(job: Job) -> "subprocess.Popen[bytes]":
    """Begins a run, or goes on with it, with one thread; what it says goes into a file beside its folder.

    Raises:
        ConfigError: if a run that an earlier start left behind still writes there.
    """
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with _log(job).open("ab") as log:
        _require_alone(job, log)
        if not job.stopped and job.begun:
            shutil.rmtree(job.folder)  # told the same, and it left nothing to go on from
        return subprocess.Popen(
            job.command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **_ONE_THREAD},
            start_new_session=True,  # Ctrl-C reaches the parent alone, which stops the runs in order
        )


def _require_alone(job: Job, log: BinaryIO) -> None:
    """Passes if nothing else writes to the log. The run inherits the lock with its output and holds it to its end.

    Whoever kills a study outright does not stop its runs, and two in one folder would spoil it.
    """
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"Expected nobody at work in {job.folder}, but a run that an earlier start left behind is. Wait for its "
            "end or stop it, and run the same command again."
        ) from error


def _log(job: Job) -> Path:
    return job.folder.with_name(f"{job.folder.name}.{LOG}")


def _require_success(job: Job, status: int) -> None:
    if status == 0 and job.finished:
        return
    raise SpecKVError(
        f"Expected {job.arm}, seed {job.seed}, to finish, got exit status {status}: {said(job)} "
        f"({_log(job)} has it all). Mend it and run the same command again; finished runs are kept."
    )


def said(job: Job) -> str:
    """The error that a run ended with, or else the end of what it said."""
    text = _log(job).read_text(encoding="utf-8", errors="replace").strip()
    last = text.splitlines()[-1] if text else ""
    return last if last.startswith(ERROR) else text[-_TAIL:]
