# SPDX-License-Identifier: Apache-2.0
"""Trials of a search: its Optuna journal, values drawn from its space, and one child run per trial."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from speckv.agents.runs.child_runs import POLL_S, ChildRun, terminated_on_exit
from speckv.agents.runs.console import REPEAT, Console, catch_signals
from speckv.agents.runs.planning import UNKNOWN_TIME, format_duration
from speckv.agents.runs.settings import SearchSettings
from speckv.agents.runs.task import Validator
from speckv.errors import ConfigError
from speckv.evaluation.curves import EVAL

JOURNAL, TRIALS, FINAL = "journal.log", "trials", "final"
"""In a search's folder: the journal, the runs of its trials, and the comparison on fresh seeds."""
_TERMS = "terms"
_ERROR = "said"
"""Optuna attribute with the error of a failed trial; an interrupted trial has none."""


def open_study(search: SearchSettings, folder: Path, terms: Mapping[str, object]) -> Any:
    """Opens or creates the journal; trials that an interrupted search left running are marked as failed.

    Args:
        terms: Settings and data that all trials share, `seed` included.

    Raises:
        ConfigError: if Optuna is not installed, or the folder holds a search on other terms.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise ConfigError('Expected Optuna for a search, found none: pip install -e ".[tune]".') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    _require_own(folder, search.name, optuna.study.get_all_study_names(storage))
    study = optuna.create_study(
        study_name=search.name,
        storage=storage,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=search.warm_up),
        direction="maximize",
        load_if_exists=True,
    )
    _require_same_terms(study, folder, terms)
    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    # The same seed would draw the first values again.
    seed, before = int(str(terms["seed"])), len(study.trials)
    drawn = int(np.random.SeedSequence([seed, before]).generate_state(1)[0]) if before else seed
    # constant_liar: a running trial counts as bad, so that trials at once try different values.
    study.sampler = optuna.samplers.TPESampler(seed=drawn, n_startup_trials=search.warm_up, constant_liar=True)
    return study


def _require_own(folder: Path, name: str, kept: Sequence[str]) -> None:
    if kept and name not in kept:
        raise ConfigError(f"Expected {folder} to hold the search {name}, got {kept}. Name another output.")
    if not kept and any((folder / other).exists() for other in (TRIALS, FINAL)):
        raise ConfigError(
            f"Expected {folder} to hold the journal of the trials that are there, found none. Name another output."
        )


def _require_same_terms(study: Any, folder: Path, terms: Mapping[str, object]) -> None:
    before, now = study.user_attrs.get(_TERMS), json.loads(json.dumps(terms))
    if before is None:
        study.set_user_attr(_TERMS, now)
        return
    for key, value in now.items():
        if before.get(key) != value:
            raise ConfigError(
                f"Expected to continue the search in {folder} with the same {key}, {before.get(key)}, got {value}. "
                "Restore it, or name another output."
            )


@dataclass(slots=True, kw_only=True)
class _RunningTrial:
    trial: Any
    run: ChildRun
    process: Any
    reported: set[int] = field(default_factory=set)
    best: float = 0.0
    pruned: bool = False
    size: int = 0
    """Bytes of the run's evaluations that have been read."""


def run_trials(
    study: Any,
    settings: SearchSettings,
    make_run: Callable[[int, list[str]], ChildRun],
    validator: Validator,
    *,
    processes: int,
    console: Console,
) -> None:
    """Runs trials of an Optuna study until there are enough; a failed trial is recorded and the search goes on.

    Raises:
        InterruptedTraining: if a signal came; running trials are marked as failed.
    """
    running: list[_RunningTrial] = []
    left = settings.trials - num_tried(study)
    try:
        with catch_signals() as request:
            while left > 0 or running:
                request.raise_if_set(REPEAT)
                while left > 0 and len(running) < processes:
                    running.append(_begin(study.ask(), settings, make_run))
                    left -= 1
                for one in running:
                    _prune(one, validator)
                for one in [r for r in running if r.process.poll() is not None]:
                    running.remove(one)
                    _record(study, one, validator, console)
                    console.write(
                        f"{left + len(running)} trials to go, {describe_left(study, left + len(running), processes)}"
                    )
                time.sleep(POLL_S)
    finally:
        with terminated_on_exit([one.process for one in running]):
            for one in running:
                study.tell(one.trial, state=_states().FAIL)


def num_tried(study: Any) -> int:
    """Trials with a result, failures included; interrupted ones do not count."""
    failed = _states().FAIL
    return sum(trial.state != failed or _ERROR in trial.user_attrs for trial in study.trials)


def describe_left(study: Any, number: int, processes: int) -> str:
    """The estimated time of the trials that are left, by the median of those with a result."""
    failed = _states().FAIL
    seconds = [t.duration.total_seconds() for t in study.trials if t.duration is not None and t.state != failed]
    if not number or not seconds:
        return UNKNOWN_TIME if number else "no trial is left"
    return f"about {format_duration(median(seconds) * -(-number // processes))} left"


def _begin(trial: Any, settings: SearchSettings, make_run: Callable[[int, list[str]], ChildRun]) -> _RunningTrial:
    overrides = suggest(trial, settings.space)
    trial.set_user_attr("overrides", overrides)
    run = make_run(trial.number, overrides)
    return _RunningTrial(trial=trial, run=run, process=run.start())


def _report_new(one: _RunningTrial, validator: Validator) -> None:
    path = one.run.folder / EVAL
    size = path.stat().st_size if path.is_file() else 0
    if size == one.size:
        return
    one.size = size
    for point in validator.read_points(path):
        one.best = max(one.best, point.mean)
        if point.step > 0 and point.step not in one.reported:
            one.reported.add(point.step)
            # The best so far, because a run's result is its best checkpoint.
            one.trial.report(one.best, point.step)


def _prune(one: _RunningTrial, validator: Validator) -> None:
    before = len(one.reported)
    _report_new(one, validator)
    if len(one.reported) > before and not one.pruned and one.trial.should_prune():
        one.pruned = True
        one.process.terminate()


def _record(study: Any, one: _RunningTrial, validator: Validator, console: Console) -> None:
    _report_new(one, validator)
    name = f"trial {one.trial.number} ({', '.join(one.trial.user_attrs['overrides'])})"
    if one.pruned and one.process.returncode != 0:  # it may have finished before it was terminated
        study.tell(one.trial, state=_states().PRUNED)  # Optuna keeps the last report, which is the best so far
        console.write(f"{name}: given up at {one.best:.4f}")
    elif one.process.returncode == 0 and one.best > 0:
        study.tell(one.trial, one.best)
        console.write(f"{name}: {one.best:.4f} x best fixed gamma on validation prompts")
    else:
        one.trial.set_user_attr(_ERROR, one.run.error_text)
        study.tell(one.trial, state=_states().FAIL)
        console.write(f"{name}: failed: {one.run.error_text}")


def _states() -> Any:
    from optuna.trial import TrialState  # late, because Optuna is an extra

    return TrialState


def suggest(trial: Any, space: Mapping[str, object]) -> list[str]:
    """Draws a value for every setting of a checked space, as overrides."""
    return [f"{key}={_text(_draw(trial, key, values))}" for key, values in space.items()]


def first_values(space: Mapping[str, object]) -> list[str]:
    """The first value of every setting, as overrides: enough to check that the settings exist."""
    return [
        f"{key}={_text(values['choices'][0] if 'choices' in values else values['low'])}"
        for key, values in space.items()
        if isinstance(values, dict)
    ]


def _draw(trial: Any, key: str, values: Any) -> object:
    if "choices" in values:
        # Optuna's categories hold numbers and text only, so a choice is drawn by its index.
        return values["choices"][trial.suggest_int(f"{key}#", 0, len(values["choices"]) - 1)]
    low, high = values["low"], values["high"]
    whole = isinstance(low, int) and isinstance(high, int)
    draw = trial.suggest_int if whole else trial.suggest_float
    rest = {"step": values["step"]} if "step" in values else {}
    drawn = draw(key, low, high, log=bool(values.get("log", False)), **rest)
    # Four digits are enough, but rounding may leave the range: 0.99996 becomes 1.
    return drawn if whole else min(max(float(f"{drawn:.4g}"), low), high)


def _text(value: object) -> str:
    """A value in Hydra's grammar.

    >>> _text([None, True, 1e-05, 64])
    '[null,true,1e-05,64]'
    """
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)
