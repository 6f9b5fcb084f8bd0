# SPDX-License-Identifier: Apache-2.0
"""Text output, progress bars, and stop signals of a run."""

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Protocol, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

RESUME = "the checkpoint is saved, continue with resume=RUN_FOLDER"
REPEAT = "run the same command again to go on where it stopped"


class InterruptedTraining(Exception):  # noqa: N818
    """A signal stopped training, after the checkpoint was saved."""

    def __init__(self, signum: int, advice: str = RESUME) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.advice = advice

    @property
    def exit_code(self) -> int:
        """The shell's exit code for a program that the signal ended."""
        return 128 + self.signum


class StopRequest:
    """Records the first signal."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def handle(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Records the signal; a second one raises KeyboardInterrupt."""
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum

    def raise_if_set(self, advice: str = RESUME) -> None:
        """Raises InterruptedTraining if a signal came."""
        if self.signum is not None:
            raise InterruptedTraining(self.signum, advice)


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Records SIGINT and SIGTERM while the block runs; outside the main thread, which handlers need, nothing."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class ProgressBar(Protocol):
    """Progress of a training loop."""

    def update(self, completed: int, note: str) -> None:
        """Sets the completed steps and the note beside the bar."""

    def milestone(self, text: str) -> None:
        """Prints a line that stays, where there is no bar."""


class Console:
    """Writes text and progress: a live bar on a terminal, plain lines anywhere else."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout

    def write(self, text: str) -> None:
        """Writes text and a line end, and flushes."""
        self._stream.write(text + "\n")
        self._stream.flush()

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads it."""
        return self._stream.isatty()

    def result(self, content: Mapping[str, object]) -> None:
        """Writes the last line, one JSON object for scripts; nothing on a terminal."""
        if not self.is_terminal:
            self.write(json.dumps(content, sort_keys=True))

    @contextmanager
    def progress(
        self, total: int, completed: int = 0, unit: str = "step", label: str = "training"
    ) -> Iterator[ProgressBar]:
        """Opens a progress bar of `total` units for the block."""
        if not self.is_terminal:
            yield _PlainProgress(self, total, completed, unit)
            return
        columns = (
            TextColumn(label),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(f"{{task.fields[rate]}} {unit}s/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        rich = RichConsole(file=self._stream)
        with Progress(*columns, console=rich, refresh_per_second=4, expand=True) as bar:
            task = bar.add_task(label, total=total, completed=completed, note="", rate=_rate(0.0))
            yield _RichProgress(bar, task, completed)


def _rate(per_second: float) -> str:
    """Whole numbers from 10 up, two decimals below.

    >>> _rate(12345.6), _rate(0.123)
    ('12,346', '0.12')
    """
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2f}"


class _RichProgress:
    def __init__(self, bar: Progress, task: TaskID, completed: int) -> None:
        self._bar, self._task = bar, task
        self._first, self._start = completed, time.monotonic()

    def update(self, completed: int, note: str) -> None:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        self._bar.update(self._task, completed=completed, note=note, rate=_rate((completed - self._first) / elapsed))

    def milestone(self, text: str) -> None:
        """Nothing: the note beside the bar shows the same."""


class _PlainProgress:
    def __init__(self, console: Console, total: int, completed: int, unit: str) -> None:
        self._console, self._total, self._completed, self._unit = console, total, completed, unit
        self._first, self._start = completed, time.monotonic()

    def update(self, completed: int, note: str) -> None:  # noqa: ARG002
        self._completed = completed

    def milestone(self, text: str) -> None:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = (self._completed - self._first) / elapsed
        where = f"{self._unit} {self._completed:>9,} of {self._total:,}"
        self._console.write(f"{where}  {_rate(rate):>8} {self._unit}s/s  {text}")
