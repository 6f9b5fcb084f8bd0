# SPDX-License-Identifier: Apache-2.0
"""One stage at work: its pieces are guarded one by one, and what they found is on disk after each."""

import contextlib
import gc
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speckv.files import write_atomically

logger = logging.getLogger(__name__)
OK, ERROR, PARTIAL, RUNNING, SKIPPED = "ok", "error", "partial", "running", "skipped"

Entry = dict[str, Any]


class Work:
    """Runs the pieces of a stage and keeps their outcome.

    Attributes:
        pieces: Name -> outcome.
        warnings: What was warned of meanwhile; filled by whoever runs the stage.

    Args:
        part: File that holds the entry as far as it is; None keeps it in memory alone.
        budget_s: Seconds after which no other piece is begun.
        clock: Seconds.
    """

    def __init__(self, part: Path | None, budget_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._part, self._budget_s, self._clock = part, budget_s, clock
        self._started = clock()
        self.pieces: dict[str, Entry] = {}
        self.warnings: list[str] = []

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left; see `share` for pieces that loop."""
        return self._budget_s - (self._clock() - self._started)

    def share(self, of: int) -> Callable[[], bool]:
        """Whether time is left of the next `1 / of` of the budget that is left now: for pieces that loop."""
        end = self._clock() + self.left_s / of
        return lambda: self._clock() < end

    def piece(self, name: str, call: Callable[[], Any]) -> Any:
        """Runs one piece, unless time is out; returns what it found, or None where it failed or was skipped."""
        if self.left_s <= 0:
            self.pieces[name] = {"status": SKIPPED, "error": f"the budget of {self._budget_s:.0f} s was used up"}
            self._keep(RUNNING)
            return None
        began = self._clock()
        self.pieces[name] = {"status": RUNNING}
        self._keep(RUNNING)
        try:
            found = call()
            self.pieces[name] = {"status": OK, "found": found}
        except Exception as error:  # the next piece shall go on, whatever this one ran into
            logger.exception("%s failed", name)
            self.pieces[name] = failure(error)
            found = None
        self.pieces[name]["seconds"] = self._clock() - began
        self._keep(RUNNING)
        free_memory()  # here, where the error is gone, and with its traceback the models in its frames
        return found

    def entry(self, status: str) -> Entry:
        """The stage's entry in the report."""
        seconds = self._clock() - self._started
        return {"status": status, "seconds": seconds, "pieces": self.pieces, "warnings": self.warnings}

    def finish(self, error: Exception | None = None) -> Entry:
        """Closes the stage: with an error of its own, or with what its pieces came to."""
        entry = self.entry(sum_up(self.pieces)) | (failure(error) if error is not None else {})
        self._write(entry)
        return entry

    def _keep(self, status: str) -> None:
        self._write(self.entry(status))

    def _write(self, entry: Entry) -> None:
        if self._part is not None:
            write_atomically(self._part, json.dumps(entry))


def free_memory() -> None:
    """Collects garbage and gives the device back what its allocator holds in reserve."""
    gc.collect()
    torch = sys.modules.get("torch")  # not imported for this: a bare interpreter runs stages, too
    if torch is not None and torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):  # a lost device; whoever needs it next will say so
            torch.cuda.empty_cache()


def clear(part: Path) -> None:
    """Removes the file of a stage's entry, and what a process left that was ended while it wrote it."""
    for path in [part, *part.parent.glob(f".{part.name}.*.partial")]:
        path.unlink(missing_ok=True)


def failure(error: Exception) -> Entry:
    """How an error stands in the report: as text, for an error kept would keep its frames, and their models."""
    return {
        "status": ERROR,
        "error": f"{type(error).__name__}: {error}",
        "traceback": traceback.format_exception(error)[-12:],
    }


def sum_up(pieces: dict[str, Entry]) -> str:
    """Status of a stage from those of its pieces.

    >>> sum_up({"a": {"status": "ok"}, "b": {"status": "skipped"}}), sum_up({"a": {"status": "error"}}), sum_up({})
    ('partial', 'error', 'error')
    """
    found = {piece["status"] for piece in pieces.values()}
    if not found or found & {ERROR, RUNNING}:
        return ERROR
    return PARTIAL if SKIPPED in found else OK
