# SPDX-License-Identifier: Apache-2.0
"""What a study, a search or a sweep is going to run, and about how long it takes."""

import shlex
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from speckv.evaluation.text import render_table

if TYPE_CHECKING:
    from speckv.agents.runs.child_runs import ChildRun  # which imports this module

NOTHING_WRITTEN = "Dry run: nothing was trained or written."
UNKNOWN_TIME = "the time is estimated when the first one ends"


def format_duration(seconds: float) -> str:
    """A duration with at most two units.

    >>> format_duration(7.4), format_duration(100), format_duration(3700)
    ('8 s', '2 min', '1 h 2 min')
    """
    if seconds < 90:
        return f"{-int(-seconds // 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def estimated_s(left: Sequence["ChildRun"], finished: Sequence["ChildRun"], processes: int) -> float | None:
    """Seconds until the runs that are left end, from the finished ones; None if there is none.

    A run is expected to take as long as the median of its arm, or else of all arms.
    """
    durations: dict[str, list[float]] = {}
    for run in finished:
        if (seconds := run.duration_s) is not None:
            durations.setdefault(run.arm, []).append(seconds)
    if not durations:
        return None
    overall = median(seconds for arm in durations.values() for seconds in arm)
    each = [median(durations[run.arm]) if run.arm in durations else overall for run in left]
    return max(sum(each) / processes, max(each, default=0.0))


def describe_time(left: Sequence["ChildRun"], finished: Sequence["ChildRun"], processes: int) -> str:
    """The estimate in words."""
    seconds = estimated_s(left, finished, processes)
    if not left:
        return "no run is left"
    return UNKNOWN_TIME if seconds is None else f"about {format_duration(seconds)} left"


def describe_runs(runs: Sequence["ChildRun"], processes: int) -> str:
    """Number of runs, how many at once, and the estimated time."""
    finished = [run for run in runs if run.finished]
    left = [run for run in runs if not run.finished]
    return (
        f"{len(runs)} runs, {len(finished)} of them finished before; {processes} at once; "
        f"{describe_time(left, finished, processes)}"
    )


def list_runs(runs: Sequence["ChildRun"]) -> str:
    """A table of the runs: arm, seed, state, folder and overrides."""
    rows = [(run.arm, str(run.seed), run.state, str(run.folder), shlex.join(run.overrides)) for run in runs]
    return render_table(("arm", "seed", "state", "folder", "overrides"), rows, num_left=5)
