# SPDX-License-Identifier: Apache-2.0
"""A search's journal: begun, or gone on with on the terms that it was begun on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.searching.settings import SearchSettings
from speckv.errors import ConfigError

JOURNAL, TRIALS, FINAL = "journal.log", "trials", "final"
"""In a search's folder: the journal, the runs of its trials, and those of the comparison on fresh seeds."""
_TERMS = "terms"


def open_study(search: SearchSettings, folder: Path, terms: Mapping[str, object]) -> Any:
    """Opens the journal, or begins one; trials that were under way when the search was stopped count as failed.

    Args:
        search: What to try.
        folder: Of the search.
        terms: What all trials have in common, `seed` among it: values of one space and one ground alone compare.

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
    # A sampler that begins anew would draw again what it drew at first.
    seed, before = int(str(terms["seed"])), len(study.trials)
    drawn = int(np.random.SeedSequence([seed, before]).generate_state(1)[0]) if before else seed
    # Trials that run at once are not to try the same: each counts as bad until it is told.
    study.sampler = optuna.samplers.TPESampler(seed=drawn, n_startup_trials=search.warm_up, constant_liar=True)
    return study


def _require_own(folder: Path, name: str, kept: Sequence[str]) -> None:
    """Passes if a journal is this search's, or is new where no trials are, which would be taken for its own."""
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
                f"Expected to go on with the search in {folder} with the same {key}, {before.get(key)}, got {value}. "
                "Restore it, or name another output."
            )
