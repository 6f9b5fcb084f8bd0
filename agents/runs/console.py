# SPDX-License-Identifier: Apache-2.0
"""The one way to standard output: a live progress bar on a terminal, plain lines anywhere else."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class ProgressBar(Protocol):
    """What a training loop tells its user."""

    def update(self, completed: int, note: str) -> None:
        """Moves to `completed` steps and shows a note beside the bar."""

    def milestone(self, text: str) -> None:
        """Shows a line that stays."""


class Console:
    """Writes text and progress.

    Args:
        stream: Where to; standard output if None.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout

    def write(self, text: str) -> None:
        """Writes text and a line end, at once."""
        self._stream.write(text + "\n")
        self._stream.flush()

    @contextmanager
    def progress(self, total: int, completed: int = 0, unit: str = "step") -> Iterator[ProgressBar]:
        """Shows progress towards `total` environment steps, or other units, while the block runs."""
        if not self._stream.isatty():
            yield _PlainProgress(self, total, completed, unit)
            return
        columns = (
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(f"{{task.fields[rate]}} {unit}s/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        rich = RichConsole(file=self._stream)
        with Progress(*columns, console=rich, refresh_per_second=4, expand=True) as bar:
            task = bar.add_task("training", total=total, completed=completed, note="", rate=_rate(0.0))
            yield _RichProgress(bar, task, completed)


def _rate(per_second: float) -> str:
    """Whole numbers, but for slow units.

    >>> _rate(12345.6), _rate(0.123)
    ('12,346', '0.12')
    """
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2f}"


class _RichProgress:
    """A live bar."""

    def __init__(self, bar: Progress, task: TaskID, completed: int) -> None:
        self._bar, self._task = bar, task
        self._first, self._start = completed, time.monotonic()

    def update(self, completed: int, note: str) -> None:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        self._bar.update(self._task, completed=completed, note=note, rate=_rate((completed - self._first) / elapsed))

    def milestone(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)


class _PlainProgress:
    """One line a milestone: logs stay short and greppable."""

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
