# SPDX-License-Identifier: Apache-2.0
"""Trials as processes: each is asked for, watched while it trains, given up where it lags, and told."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agents.runs.console import Console, catch_signals
from agents.runs.validation import Validator
from agents.searching.settings import SearchSettings, suggest
from agents.studies.running import POLL_S, Job, begin, require_no, said, stopped_at_the_end
from speckv.evaluation.curves import EVAL

_SAID = "said"
"""Attribute of a failed trial: what its run said. One that was stopped has none."""


@dataclass(slots=True, kw_only=True)
class _Running:
    """One trial under way."""

    trial: Any
    job: Job
    process: Any
    reported: set[int] = field(default_factory=set)
    best: float = 0.0
    given_up: bool = False
    size: int = 0


def run_trials(
    study: Any,
    settings: SearchSettings,
    make_job: Callable[[int, list[str]], Job],
    validator: Validator,
    *,
    processes: int,
    console: Console,
) -> None:
    """Tries until there are enough trials; one that fails is told as failed, and the search goes on.

    Args:
        study: Of Optuna, maximising throughput over the best fixed gamma on validation prompts.
        settings: Of the search.
        make_job: Number of a trial and its overrides -> its run.
        validator: Scores its rows.
        processes: At once.
        console: Takes a line a trial.

    Raises:
        InterruptedTraining: if a signal came; trials under way count as failed.
    """
    running: list[_Running] = []
    left = settings.trials - num_tried(study)
    try:
        with catch_signals() as request:
            while left > 0 or running:
                require_no(request)
                while left > 0 and len(running) < processes:
                    running.append(_begin(study.ask(), settings, make_job))
                    left -= 1
                for one in running:
                    _watch(one, validator)
                for one in [r for r in running if r.process.poll() is not None]:
                    running.remove(one)
                    _tell(study, one, validator, console)
                time.sleep(POLL_S)
    finally:
        with stopped_at_the_end([one.process for one in running]):
            for one in running:
                study.tell(one.trial, state=_states().FAIL)


def num_tried(study: Any) -> int:
    """Trials that came to something, be it a failure; those that were stopped under way are tried again, as others."""
    failed = _states().FAIL
    return sum(trial.state != failed or _SAID in trial.user_attrs for trial in study.trials)


def _begin(trial: Any, settings: SearchSettings, make_job: Callable[[int, list[str]], Job]) -> _Running:
    overrides = suggest(trial, settings.space)
    trial.set_user_attr("overrides", overrides)
    job = make_job(trial.number, overrides)
    return _Running(trial=trial, job=job, process=begin(job))


def _take_in(one: _Running, validator: Validator) -> None:
    """Reports what the run has written since the last look."""
    path = one.job.folder / EVAL
    size = path.stat().st_size if path.is_file() else 0
    if size == one.size:
        return
    one.size = size
    for point in validator.read_points(path):
        one.best = max(one.best, point.mean)
        if point.step > 0 and point.step not in one.reported:
            one.reported.add(point.step)
            # The best so far, because the best checkpoint is what a run comes to.
            one.trial.report(one.best, point.step)


def _watch(one: _Running, validator: Validator) -> None:
    """Stops a trial that lags behind the median of the others."""
    known = len(one.reported)
    _take_in(one, validator)
    if len(one.reported) > known and not one.given_up and one.trial.should_prune():
        one.given_up = True
        one.process.terminate()


def _tell(study: Any, one: _Running, validator: Validator, console: Console) -> None:
    _take_in(one, validator)
    name = f"trial {one.trial.number} ({', '.join(one.trial.user_attrs['overrides'])})"
    if one.given_up and one.process.returncode != 0:  # it may have come to its end in the meantime
        study.tell(one.trial, state=_states().PRUNED)  # Optuna takes what was reported last: the best so far
        console.write(f"{name}: given up at {one.best:.4f}")
    elif one.process.returncode == 0 and one.best > 0:
        study.tell(one.trial, one.best)
        console.write(f"{name}: {one.best:.4f} x best fixed gamma on validation prompts")
    else:
        one.trial.set_user_attr(_SAID, said(one.job))
        study.tell(one.trial, state=_states().FAIL)
        console.write(f"{name}: failed: {said(one.job)}")


def _states() -> Any:
    from optuna.trial import TrialState  # late, because Optuna is an extra

    return TrialState
