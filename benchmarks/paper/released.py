# SPDX-License-Identifier: Apache-2.0
"""The result files that the SpecKV paper released, read and checked.

`phase2_experiment_results.csv` has one line per run (compression, gamma, prompt). `phase2_step_results.csv` has one
line per decode step, in the order of the runs; this order gives the prompt of each step.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speckv.errors import DataError
from speckv.types import IntArray

Float64 = NDArray[np.float64]

RUNS, STEPS, ORACLE = "phase2_experiment_results.csv", "phase2_step_results.csv", "phase2_optimal_gamma.csv"
TABLE, BREAKDOWN, FIGURES = (
    "paper_table1_policy_comparison.csv",
    "paper_table2_detailed_breakdown.csv",
    "paper_numbers.json",
)
FIXED_GAMMA = 4
"""The paper's baseline."""

SIGNALS = ("mean_draft_entropy", "mean_draft_confidence", "max_draft_entropy", "min_draft_confidence")
"""Over the drafted tokens of a step, in the order of the paper's features."""

POLICIES = ("Fixed-4", "Fixed-best", "Task-oracle", "SpecKV-fast")
"""The policies that the small network scores. SpecKV-accurate, a random forest, is left out."""

OVERALL = "Overall"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRuns:
    """Decoded texts; arrays of shape [runs]. Compressions, tasks and prompts are indices into `Records`."""

    compression: IntArray
    task: IntArray
    prompt: IntArray
    gamma: IntArray
    tokens: Float64
    seconds: Float64
    steps: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedSteps:
    """Decode steps; arrays of shape [steps]. LoggedRuns, compressions, tasks and prompts are indices.

    Attributes:
        accepted: Drafted tokens kept.
        acceptance_rate: Accepted over drafted, before the end of the text cuts anything.
        signals: Shape [steps, 4]; of the draft of the same step, as `SIGNALS` lists.
        is_first: Whether the step is the first of its run.
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
    """The released measurements.

    Attributes:
        compressions: Names, in order of appearance.
        prompt_tasks: Task of each prompt, as an index.
        gammas: Logged ones, ascending.
        oracle: Shape [compressions, tasks]; the gamma with the most tokens per second, as the paper found it.
    """

    compressions: tuple[str, ...]
    tasks: tuple[str, ...]
    prompt_tasks: IntArray
    gammas: IntArray
    runs: LoggedRuns
    steps: LoggedSteps
    oracle: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperTable:
    """Tokens per step, computed as in the paper.

    Attributes:
        policies: Shape [compressions + 1, policies]; the last line is over all compressions.
        breakdown: Shape [compressions, tasks, 2]; Fixed-4 and SpecKV-fast.
        improvement: SpecKV-fast over Fixed-4, minus one.
        correlation: Of predicted and logged acceptance rates on test records.
        squared_error: Mean, on test records.
        num_train: Records that the reported predictor was fitted to.
        num_test: Records that policies are scored on.
    """

    policies: Float64
    breakdown: Float64
    improvement: float
    correlation: float
    squared_error: float
    num_train: int
    num_test: int


def read_records(folder: Path) -> Records:
    """Reads runs, steps and the paper's best gamma of each task.

    Raises:
        DataError: if a file is missing, damaged, or does not fit the others.
    """
    names = ("compression", "task", "prompt")
    table = _read_table(folder, RUNS, (*names, "gamma", "num_tokens", "elapsed_sec", "num_steps"))
    compressions, tasks, prompts = (tuple(dict.fromkeys(table[name])) for name in names)
    runs = LoggedRuns(
        compression=_codes(table["compression"], compressions),
        task=_codes(table["task"], tasks),
        prompt=_codes(table["prompt"], prompts),
        gamma=_integers(table, "gamma", RUNS),
        tokens=_numbers(table, "num_tokens", RUNS),
        seconds=_numbers(table, "elapsed_sec", RUNS),
        steps=_integers(table, "num_steps", RUNS),
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


def read_published(folder: Path, records: Records) -> PaperTable:
    """Reads the paper's two tables and its list of figures.

    Raises:
        DataError: if a file is missing or incomplete.
    """
    table = _read_table(folder, TABLE, ("compression", *POLICIES))
    wanted = [*records.compressions, OVERALL]
    detail = _read_table(folder, BREAKDOWN, ("compression", "task", "Fixed-4", "SpecKV"))
    cells = list(zip(detail["compression"], detail["task"], strict=True))
    pairs = [(c, t) for c in records.compressions for t in records.tasks]
    if set(wanted) - set(table["compression"]) or set(pairs) - set(cells):
        raise DataError(f"{TABLE}, {BREAKDOWN}: expected lines for {wanted} and for each task. Fetch the files again.")
    lines = [table["compression"].index(name) for name in wanted]
    places = [cells.index(pair) for pair in pairs]
    columns = [_numbers(detail, name, BREAKDOWN)[places] for name in ("Fixed-4", "SpecKV")]
    content = _read_json(folder, FIGURES)

    def figure(group: str, name: str) -> float:
        value = content.get(group, {}).get(name)
        if not isinstance(value, int | float):
            raise DataError(f"{FIGURES}: expected a number {group}.{name}, got {value!r}. Fetch the file again.")
        return float(value)

    return PaperTable(
        policies=np.column_stack([_numbers(table, name, TABLE)[lines] for name in POLICIES]),
        breakdown=np.stack(columns, axis=-1).reshape(len(records.compressions), len(records.tasks), 2),
        improvement=figure("results", "overall_improvement_pct") / 100,
        correlation=figure("predictor", "fast_test_corr"),
        squared_error=figure("predictor", "fast_test_mse"),
        num_train=int(figure("dataset", "train_records")),
        num_test=int(figure("dataset", "test_records")),
    )


def _read_steps(folder: Path, runs: LoggedRuns, compressions: Sequence[str], tasks: Sequence[str]) -> LoggedSteps:
    columns = ("compression", "task", "gamma", "step", "accepted", "acceptance_rate", *SIGNALS)
    table = _read_table(folder, STEPS, columns)
    step, gamma = _integers(table, "step", STEPS), _integers(table, "gamma", STEPS)
    run = np.repeat(np.arange(len(runs.steps)), runs.steps)
    places = np.concatenate([np.arange(count) for count in runs.steps])
    fits = len(run) == len(step) and np.array_equal(places, step) and np.array_equal(runs.gamma[run], gamma)
    if fits:
        fits = table["compression"] == [compressions[c] for c in runs.compression[run]]
        fits &= table["task"] == [tasks[t] for t in runs.task[run]]
    if not fits:
        raise DataError(f"{STEPS}: expected the steps of each line of {RUNS}, in its order. Fetch both files again.")
    return LoggedSteps(
        run=run,
        compression=runs.compression[run],
        task=runs.task[run],
        prompt=runs.prompt[run],
        gamma=gamma,
        accepted=_integers(table, "accepted", STEPS),
        acceptance_rate=_numbers(table, "acceptance_rate", STEPS),
        signals=np.column_stack([_numbers(table, name, STEPS) for name in SIGNALS]),
        is_first=step == 0,
    )


def _read_oracle(folder: Path, compressions: Sequence[str], tasks: Sequence[str], gammas: IntArray) -> IntArray:
    table = _read_table(folder, ORACLE, ("compression", "task", "optimal_gamma"))
    best = dict(zip(zip(table["compression"], table["task"], strict=True), table["optimal_gamma"], strict=True))
    wanted = [(compression, task) for compression in compressions for task in tasks]
    if any(best.get(key) not in [str(gamma) for gamma in gammas] for key in wanted):
        raise DataError(f"{ORACLE}: expected one of the gammas {gammas.tolist()} for each of {wanted}.")
    return np.array([int(best[key]) for key in wanted]).reshape(len(compressions), len(tasks))


def _read_table(folder: Path, name: str, columns: Sequence[str]) -> dict[str, list[str]]:
    """Reads some columns of a CSV file."""
    path = folder / name
    if not path.is_file():
        raise DataError(
            f"Expected the SpecKV paper's {name} in {folder}, found none. The files are the results/ folder of "
            "github.com/Amorfati123/SpecKV; name yours with paper.folder=FOLDER."
        )
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path}: expected a column {missing[0]!r}, got {reader.fieldnames}. Fetch the file again.")
        rows = list(reader)
    if not rows:
        raise DataError(f"{path}: expected at least one line below the header, got none. Fetch the file again.")
    return {column: [row[column] or "" for row in rows] for column in columns}


def _read_json(folder: Path, name: str) -> dict[str, dict[str, object]]:
    """Reads a JSON file of groups of figures."""
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"Expected the SpecKV paper's {name} in {folder}, got {error}. Fetch the file again."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(group, dict) for group in content.values()):
        raise DataError(f"{path}: expected groups of figures, got something else. Fetch the file again.")
    return content


def _numbers(table: dict[str, list[str]], column: str, name: str) -> Float64:
    try:
        values = np.array([float(text) for text in table[column]])
    except ValueError as error:
        raise DataError(f"{name}: expected numbers in column {column!r}, got {error}. Fetch the file again.") from error
    if not np.isfinite(values).all():
        raise DataError(f"{name}: expected finite numbers in column {column!r}. Fetch the file again.")
    return values


def _integers(table: dict[str, list[str]], column: str, name: str) -> IntArray:
    return _numbers(table, column, name).astype(np.int64)


def _codes(names: Sequence[str], known: Sequence[str]) -> IntArray:
    place = {name: index for index, name in enumerate(known)}
    return np.array([place[name] for name in names], np.int64)
