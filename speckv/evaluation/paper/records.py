# SPDX-License-Identifier: Apache-2.0
"""The files that the SpecKV paper released, read and checked.

`phase2_experiment_results.csv` has a line a run (compression, gamma, prompt), `phase2_step_results.csv` a line a decode
step, in the order of the runs, which is how every step's prompt is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speckv.errors import DataError
from speckv.evaluation.paper.files import numbers, read_table
from speckv.types import IntArray

Float64 = NDArray[np.float64]

RUNS, STEPS, ORACLE = "phase2_experiment_results.csv", "phase2_step_results.csv", "phase2_optimal_gamma.csv"
FIXED_GAMMA = 4
"""Of the paper's baseline."""

SIGNALS = ("mean_draft_entropy", "mean_draft_confidence", "max_draft_entropy", "min_draft_confidence")
"""Of the drafted tokens of a step, in the order of the paper's features."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """One decoded text each; arrays of shape [runs]. Compressions, tasks and prompts are indices into `Records`."""

    compression: IntArray
    task: IntArray
    prompt: IntArray
    gamma: IntArray
    tokens: Float64
    seconds: Float64
    steps: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Decode steps; arrays of shape [steps].

    Attributes:
        run: Index of the run.
        compression: Index.
        task: Index.
        prompt: Index.
        gamma: Tokens drafted.
        accepted: Drafted tokens kept.
        acceptance_rate: Accepted over drafted, before the text's end cuts anything.
        signals: Shape [steps, 4]; of this very step's draft, as `SIGNALS` lists.
        is_first: Whether no step of the run precedes it.
    """

    run: IntArray
    compression: IntArray
    task: IntArray
    prompt: IntArray
    gamma: IntArray
    accepted: IntArray
    acceptance_rate: Float64
    signals: Float64
    is_first: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """All that was measured.

    Attributes:
        compressions: Names, in order of appearance.
        tasks: Names.
        prompt_tasks: Task of each prompt, as an index.
        gammas: Logged ones, ascending.
        runs: Texts.
        steps: Decode steps.
        oracle: Shape [compressions, tasks]; gamma of most tokens a second, as the paper found it.
    """

    compressions: tuple[str, ...]
    tasks: tuple[str, ...]
    prompt_tasks: IntArray
    gammas: IntArray
    runs: Runs
    steps: Steps
    oracle: IntArray


def _whole(table: dict[str, list[str]], column: str, name: str) -> IntArray:
    return numbers(table, column, name).astype(np.int64)


def _codes(names: Sequence[str], known: Sequence[str]) -> IntArray:
    place = {name: index for index, name in enumerate(known)}
    return np.array([place[name] for name in names], np.int64)


def read_records(folder: Path) -> Records:
    """Reads runs, steps and the paper's best gamma of each task.

    Raises:
        DataError: if a file is missing, damaged, or does not fit the others.
    """
    names = ("compression", "task", "prompt")
    table = read_table(folder, RUNS, (*names, "gamma", "num_tokens", "elapsed_sec", "num_steps"))
    compressions, tasks, prompts = (tuple(dict.fromkeys(table[name])) for name in names)
    runs = Runs(
        compression=_codes(table["compression"], compressions),
        task=_codes(table["task"], tasks),
        prompt=_codes(table["prompt"], prompts),
        gamma=_whole(table, "gamma", RUNS),
        tokens=numbers(table, "num_tokens", RUNS),
        seconds=numbers(table, "elapsed_sec", RUNS),
        steps=_whole(table, "num_steps", RUNS),
    )
    gammas = np.unique(runs.gamma)
    if FIXED_GAMMA not in gammas or len(runs.gamma) != len(compressions) * len(prompts) * len(gammas):
        raise DataError(f"{RUNS}: expected a run for each compression, prompt and gamma, {FIXED_GAMMA} among them.")
    prompt_tasks = np.zeros(len(prompts), np.int64)
    prompt_tasks[runs.prompt] = runs.task
    return Records(
        compressions=compressions,
        tasks=tasks,
        prompt_tasks=prompt_tasks,
        gammas=gammas,
        runs=runs,
        steps=_read_steps(folder, runs, compressions, tasks),
        oracle=_read_oracle(folder, compressions, tasks, gammas),
    )


def _read_steps(folder: Path, runs: Runs, compressions: Sequence[str], tasks: Sequence[str]) -> Steps:
    columns = ("compression", "task", "gamma", "step", "accepted", "acceptance_rate", *SIGNALS)
    table = read_table(folder, STEPS, columns)
    step, gamma = _whole(table, "step", STEPS), _whole(table, "gamma", STEPS)
    run = np.repeat(np.arange(len(runs.steps)), runs.steps)
    places = np.concatenate([np.arange(count) for count in runs.steps])
    fits = len(run) == len(step) and np.array_equal(places, step) and np.array_equal(runs.gamma[run], gamma)
    if fits:
        fits = table["compression"] == [compressions[c] for c in runs.compression[run]]
        fits &= table["task"] == [tasks[t] for t in runs.task[run]]
    if not fits:
        raise DataError(f"{STEPS}: expected the steps of each line of {RUNS}, in its order. Fetch both files again.")
    return Steps(
        run=run,
        compression=runs.compression[run],
        task=runs.task[run],
        prompt=runs.prompt[run],
        gamma=gamma,
        accepted=_whole(table, "accepted", STEPS),
        acceptance_rate=numbers(table, "acceptance_rate", STEPS),
        signals=np.column_stack([numbers(table, name, STEPS) for name in SIGNALS]),
        is_first=step == 0,
    )


def _read_oracle(folder: Path, compressions: Sequence[str], tasks: Sequence[str], gammas: IntArray) -> IntArray:
    table = read_table(folder, ORACLE, ("compression", "task", "optimal_gamma"))
    best = dict(zip(zip(table["compression"], table["task"], strict=True), table["optimal_gamma"], strict=True))
    wanted = [(compression, task) for compression in compressions for task in tasks]
    if any(best.get(key) not in [str(gamma) for gamma in gammas] for key in wanted):
        raise DataError(f"{ORACLE}: expected one of the gammas {gammas.tolist()} for each of {wanted}.")
    return np.array([int(best[key]) for key in wanted]).reshape(len(compressions), len(tasks))
