# SPDX-License-Identifier: Apache-2.0
"""One stage in a process of its own: `python -m benchmarks.gpu.worker MODULE:FUNCTION SETTINGS PART SECONDS`."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.settings import OFFLINE, Settings
from benchmarks.gpu.work import Entry, Work


def run_stage(function: str, settings: Settings, part: Path | None, budget_s: float) -> Entry:
    """Runs a stage in this process and returns its entry; whatever it raises stands there.

    Args:
        function: As `benchmarks.gpu.lossless:run`; called with the settings and the `Work`.
        settings: Handed on.
        part: File that holds the entry as far as it is.
        budget_s: Seconds.
    """
    work = Work(part, budget_s)
    module, _, name = function.partition(":")
    try:
        getattr(importlib.import_module(module), name)(settings, work)
    except Exception as error:  # a module that is missing included
        logging.getLogger(__name__).exception("%s failed", function)
        return work.finish(error)
    return work.finish()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the stage that the command line names."""
    function, settings, part, budget_s = arguments if arguments is not None else sys.argv[1:]
    os.environ.update(OFFLINE)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_stage(function, Settings.from_json(settings), Path(part), float(budget_s))


if __name__ == "__main__":
    main()
