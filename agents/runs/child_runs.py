# SPDX-License-Identifier: Apache-2.0
"""Training runs as child processes with one thread each; finished runs are not repeated."""

import datetime
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

from speckv.agents.runs.console import REPEAT, Console, catch_signals
from speckv.agents.runs.planning import describe_runs, describe_time
from speckv.agents.runs.run_folder import EVALUATION, LAST, OVERRIDES
from speckv.errors import CheckpointError, ConfigError, SpecKVError
from speckv.evaluation.report import PER_PROMPT
from speckv.evaluation.run_facts import read_facts

LOG = "log.txt"
ERROR_PREFIX = "speckv: "
"""Start of an expected error's line."""
PROGRAM = (sys.executable, "-m", "speckv", "train")
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
POLL_S = 0.2
_TAIL = 800
_NOT_OF_A_CHILD = ("study", "seeds", "processes", "seed", "output", "runs_dir", "threads", "hydra", "dry_run")
"""Settings of the study or search itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildRun:
    """One training run of a study or a search; `overrides` include the seed but not the output."""

    arm: str
    seed: int
    overrides: tuple[str, ...]
    folder: Path

    @property
    def log(self) -> Path:
        """File beside the run folder with everything that the run prints."""
        return self.folder.with_name(f"{self.folder.name}.{LOG}")

    @property
    def finished(self) -> bool:
        """Whether the run has been evaluated."""
        return (self.folder / EVALUATION / PER_PROMPT).is_file()

    @property
    def duration_s(self) -> float | None:
        """Seconds from the start of a finished run to its evaluation, interruptions included; None if unknown."""
        evaluated = self.folder / EVALUATION / PER_PROMPT
        try:
            started = datetime.datetime.fromisoformat(str(read_facts(self.folder).get("started")))
            seconds = evaluated.stat().st_mtime - started.timestamp()
        except (CheckpointError, OSError, ValueError):
            return None
        return seconds if seconds > 0 else None

    @property
    def state(self) -> str:
        """Whether the run is finished, can be resumed, or is new."""
        resumable = (self.folder / LAST).is_file()
        return "finished" if self.finished else "resumes" if resumable else "new"

    @property
    def begun(self) -> bool:
        """Whether a run began in the folder, or was stopped while it wrote its first file."""
        if not self.folder.is_dir():
            return False
        return (self.folder / OVERRIDES).is_file() or all(p.name.endswith(".partial") for p in self.folder.iterdir())

    @property
    def command(self) -> list[str]:
        """Command line that begins the run, or resumes it from its checkpoint."""
        resumable = (self.folder / LAST).is_file()
        arguments = [f"resume={self.folder}"] if resumable else [*self.overrides, f"output={self.folder}"]
        return [*PROGRAM, *arguments]

    @property
    def error_text(self) -> str:
        """The error line that a failed run ended with, or else the end of its log."""
        text = self.log.read_text(encoding="utf-8", errors="replace").strip()
        last = text.splitlines()[-1] if text else ""
        return last if last.startswith(ERROR_PREFIX) else text[-_TAIL:]

    def require_same_overrides(self) -> None:
        """Passes if the folder is new or holds a run of the same overrides."""
        path = self.folder / OVERRIDES
        if not path.is_file():
            return
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        before = [line for line in lines if not line.startswith("output=")]
        if before != list(self.overrides):
            raise ConfigError(
                f"Expected {self.folder} to hold a run of {list(self.overrides)}, got {before}. Name another output."
            )

    def start(self) -> "subprocess.Popen[bytes]":
        """Begins or resumes the run in a process with one thread."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._require_alone(log)
            if self.begun and not (self.folder / LAST).is_file():
                shutil.rmtree(self.folder)  # the same overrides, and no checkpoint
            return subprocess.Popen(
                self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_ONE_THREAD},
                start_new_session=True,  # Ctrl-C reaches the parent alone, which stops the runs in order
            )

    def _require_alone(self, log: BinaryIO) -> None:
        """A study that is killed does not stop its children, so each child holds this lock on its log until it ends."""
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"Expected no running process in {self.folder}, but a run that an earlier start left behind is there. "
                "Wait for its end or stop it, and run the same command again."
            ) from error


def run_all(runs: Sequence[ChildRun], processes: int, console: Console) -> None:
    """Runs everything that is not finished, in order and at most `processes` at once.

    Raises:
        SpecKVError: if a run failed, with its error; the others under way are stopped.
        InterruptedTraining: if a signal came, after the runs have saved.
    """
    for run in runs:
        run.require_same_overrides()
    finished = [run for run in runs if run.finished]
    waiting = [run for run in runs if not run.finished]
    console.write(describe_runs(runs, processes))
    running: dict[ChildRun, subprocess.Popen[bytes]] = {}
    with catch_signals() as request, terminated_on_exit(running.values()):
        while waiting or running:
            request.raise_if_set(REPEAT)
            while waiting and len(running) < processes:
                run = waiting.pop(0)
                running[run] = run.start()
            for run in [r for r, process in running.items() if process.poll() is not None]:
                _require_success(run, running.pop(run).returncode)
                finished.append(run)
                left = [*waiting, *running]
                console.write(
                    f"{run.arm}, seed {run.seed}: done, {len(left)} to go, {describe_time(left, finished, processes)}"
                )
            time.sleep(POLL_S)


@contextmanager
def terminated_on_exit(processes: Iterable["subprocess.Popen[bytes]"]) -> Iterator[None]:
    """Terminates the remaining processes when the block is left; a learner then saves a checkpoint."""
    try:
        yield
    finally:
        left = list(processes)
        for process in left:
            process.terminate()
        for process in left:
            process.wait()


def _require_success(run: ChildRun, status: int) -> None:
    if status == 0 and run.finished:
        return
    raise SpecKVError(
        f"Expected {run.arm}, seed {run.seed}, to finish, got exit status {status}: {run.error_text} "
        f"(full log: {run.log}). Mend it and run the same command again; finished runs are kept."
    )


def group_of(override: str) -> str:
    """The top-level setting of an override.

    >>> group_of("+search.trials=30"), group_of("agent=ppo")
    ('search', 'agent')
    """
    return override.lstrip("+~").split("=")[0].split(".")[0].split("@")[0]


def shared_overrides(overrides: Sequence[str]) -> list[str]:
    """The part of a study's command line that all its runs have in common."""
    return [override for override in overrides if group_of(override) not in _NOT_OF_A_CHILD]
