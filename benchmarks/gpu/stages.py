# SPDX-License-Identifier: Apache-2.0
"""The stages, their budgets, and how they share the time of a run; the report is rewritten after each.

What one stage leaves unspent goes to those behind it. Stages that are not asked for keep what an earlier run found.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gpu.report import Report, add, describe
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.work import SKIPPED, Entry, clear
from speckv.errors import ConfigError

logger = logging.getLogger(__name__)
USEFUL_S = 10.0
"""A stage that would get fewer seconds than that is skipped."""

Runner = Callable[["Stage", Settings, Path | None], Entry]
"""Runs a stage, whose entry grows in that file, if one is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage.

    Attributes:
        name: Its key in the report.
        what: In one line.
        function: `module:function`, called with settings and a `Work`; imported where the stage runs.
        budget_s: Seconds after which it is ended.
        least_s: Seconds without which it finds too little to be run.
    """

    name: str
    what: str
    function: str
    budget_s: float
    least_s: float = 0.0


def _stage(name: str, budget_s: float, least_s: float, what: str) -> Stage:
    return Stage(name=name, what=what, function=f"benchmarks.gpu.{name}:run", budget_s=budget_s, least_s=least_s)


STAGES = (
    _stage("machine", 60, 45, "device, driver, versions, and what is missing"),
    _stage("weights", 210, 210, "weights joined from their parts, verified, and converted"),
    _stage("tests", 120, 60, "tests marked gpu"),
    _stage("lossless", 210, 75, "random gammas against plain decoding, by dtype and compression"),
    _stage("calibration", 300, 90, "cost tables of the pairs"),
    _stage("throughput", 210, 75, "plain, best fixed gamma, controllers and transformers' own, live"),
    _stage("breakdown", 90, 30, "where a step's time goes"),
)
"""In the order they run; their budgets add up to 20 minutes."""
NO_WEIGHTS_S = 5.0
"""What the stage `weights` needs where no folder was given."""


def chosen(names: Sequence[str], *, named_by_device: bool, weights: bool) -> list[Stage]:
    """Stages in their order, with what they need at least.

    Args:
        names: Those that are asked for.
        named_by_device: Whether `machine` is run in any case, as the report is named after what it finds.
        weights: Whether there is a folder with weights to prepare.
    """
    stages = [stage for stage in STAGES if stage.name in names or (named_by_device and stage.name == "machine")]
    return [replace(s, least_s=NO_WEIGHTS_S) if s.name == "weights" and not weights else s for s in stages]


def require_time(stages: Sequence[Stage], minutes: float) -> None:
    """Passes if the minutes are enough for all of the stages.

    Raises:
        ConfigError: if not.
    """
    least_s = sum(stage.least_s for stage in stages)
    if not 60 * minutes >= least_s:
        each = ", ".join(f"{stage.name} {stage.least_s:.0f} s" for stage in stages)
        raise ConfigError(
            f"Expected at least {math.ceil(least_s / 0.6) / 100:g} minutes ({each}), got {minutes:g}. Give more "
            "(--minutes), or name fewer stages (--stages)."
        )


def share(stages: Sequence[Stage], left_s: float) -> float:
    """Seconds for the first of the stages that are left.

    Each gets what it needs at least; what is left beyond that is shared out by how far each is below its budget.

    >>> two = [replace(STAGES[5], budget_s=100, least_s=20), replace(STAGES[6], budget_s=50, least_s=10)]
    >>> share(two, 150), share(two, 90), share(two[1:], 90)
    (100.0, 60.0, 50)
    """
    first = stages[0]
    spare = left_s - sum(stage.least_s for stage in stages)
    open_s = sum(stage.budget_s - stage.least_s for stage in stages)
    own = first.least_s + (spare * (first.budget_s - first.least_s) / open_s if open_s > 0 else 0.0)
    return max(0.0, min(own, first.budget_s, left_s))


def run_all(
    stages: Sequence[Stage],
    settings: Settings,
    out: Path | Callable[[Report], Path],
    *,
    runner: Runner,
    command: str,
    minutes: float = 20.0,
    places: Mapping[str, str] | None = None,
    stop: Sequence[int] = (),
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Report, Path, dict[str, str]]:
    """Runs stages one after the other and rewrites the report after each.

    Args:
        stages: Which, in order.
        settings: Of the run.
        out: The report's file, or what names it from the report so far.
        runner: `isolated`, or `in_process` for rehearsals.
        command: What the user typed, for the report.
        minutes: For all of them together.
        places: Folders that the report is not to name -> what stands for them.
        stop: No other stage is begun once something is in it.
        clock: Seconds.

    Returns:
        The report, the file it stands in, and the status of each stage that was run or skipped.
    """
    end = clock() + 60 * minutes
    found: dict[str, Entry] = {}
    report: Report = {}
    path = None if callable(out) else out
    for number, stage in enumerate(stages):
        if stop:
            break
        given = replace(stage, budget_s=share(stages[number:], end - clock()))
        part = path.with_name(f"{path.stem}.{stage.name}.part.json") if path is not None else None
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = _run(given, stage, settings, part, runner)
        about = {"what": stage.what, "budget_s": round(given.budget_s, 1), "short": settings.short, "began": began}
        found[stage.name] = about | {"command": command} | entry
        report, path = add(settings, found, out, places or {})
        if part is not None:
            clear(part)
        for line in describe(stage.name, entry):
            logger.info("%s", line)
    return report, path or Path(), {name: entry["status"] for name, entry in found.items()}


def _run(given: Stage, stage: Stage, settings: Settings, part: Path | None, runner: Runner) -> Entry:
    """Runs a stage in the time that it is given, or says that this is too little."""
    if given.budget_s < min(USEFUL_S, stage.least_s):
        return {"status": SKIPPED, "error": f"{given.budget_s:.0f} s were left for it", "seconds": 0.0, "pieces": {}}
    logger.info("%s: %s, at most %.0f s", stage.name, stage.what, given.budget_s)
    return runner(given, settings, part)
