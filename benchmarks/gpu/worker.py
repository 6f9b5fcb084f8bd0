# SPDX-License-Identifier: Apache-2.0
"""One stage in a process of its own: `python -m benchmarks.gpu.worker MODULE:FUNCTION SETTINGS PART SECONDS PARENT`."""

import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu.settings import OFFLINE, Settings
from benchmarks.gpu.work import Entry, Work

APART = ("", "transformers")
"""Loggers whose warnings are kept: the root, and one that does not hand its own on to it."""


class KeptWarnings(logging.Handler):
    """Keeps what is logged as a warning or worse, each text once.

    Args:
        kept: Takes the texts.
        most: Texts that are kept; those behind them are dropped.
    """

    def __init__(self, kept: list[str], most: int = 50) -> None:
        super().__init__(logging.WARNING)
        self._kept, self._most = kept, most

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a text, unless it is there, or tells of a piece that failed: the report has that already."""
        if record.name == Work.__module__:
            return
        try:
            text = f"{record.name}: {record.getMessage()}"
        except Exception:  # a handler never fails for whoever logs
            self.handleError(record)
            return
        if text not in self._kept and len(self._kept) < self._most:
            self._kept.append(text)


@contextlib.contextmanager
def warnings_kept(kept: list[str]) -> Iterator[None]:
    """Puts what is warned of meanwhile into a list."""
    handler = KeptWarnings(kept)
    for name in APART:
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name in APART:
            logging.getLogger(name).removeHandler(handler)


def run_stage(function: str, settings: Settings, part: Path | None, budget_s: float) -> Entry:
    """Runs a stage in this process and returns its entry; whatever it raises stands there.

    Args:
        function: As `benchmarks.gpu.lossless:run`; called with the settings and the `Work`.
        settings: Handed on.
        part: File that holds the entry as far as it is.
        budget_s: Seconds.
    """
    stage = Work(part, budget_s)
    module, _, name = function.partition(":")
    try:
        with warnings_kept(stage.warnings):
            getattr(importlib.import_module(module), name)(settings, stage)
    except Exception as error:  # a module that is missing included
        logging.getLogger(__name__).exception("%s failed", function)
        return stage.finish(error)
    return stage.finish()


def end_with(parent: int, every_s: float = 1.0) -> None:
    """Ends this process and its group once its parent is gone: nothing else would free the device."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every_s)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the stage that the command line names."""
    function, settings, part, budget_s, parent = arguments if arguments is not None else sys.argv[1:]
    os.environ.update(OFFLINE)
    end_with(int(parent))
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.captureWarnings(True)
    run_stage(function, Settings.from_json(settings), Path(part), float(budget_s))


if __name__ == "__main__":
    main()
