# SPDX-License-Identifier: Apache-2.0
"""Results of a study: each arm over the best fixed gamma and over the first arm, as numbers, text and picture.

Intervals are a bootstrap over prompts and seeds; claims are sign-flip tests with Holm's control over the arms.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from speckv.agents.runs.child_runs import ChildRun
from speckv.agents.runs.run_folder import EVALUATION
from speckv.errors import CheckpointError
from speckv.evaluation.bootstrap import Float64, Interval, resample_counts
from speckv.evaluation.compare import NUM_RESAMPLES
from speckv.evaluation.entrants import Entrant, References, measure, run_generator, speedups
from speckv.evaluation.metrics import ALL, Grid, Group, Sums, groups_of
from speckv.evaluation.plots import INK, PALETTE, figure_text, tidy
from speckv.evaluation.replays import AUTOREGRESSIVE, BEST_FIXED, CLAIRVOYANT
from speckv.evaluation.report import PER_PROMPT, RESULTS
from speckv.evaluation.significance import PairedComparison, family_against
from speckv.evaluation.text import format_interval, render_table

_COUNTS = ("tokens", "seconds", "steps", "drafted", "accepted", "tested")
HEADER = ("arm", "x best fixed gamma", "x first arm", "against the first arm")
_DPI = 150
_TITLE_WIDTH, _NAME_WIDTH = 100, 40
"""Characters of a line, above the axes and at their side."""
_BASELINES = (AUTOREGRESSIVE, BEST_FIXED, CLAIRVOYANT)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySums:
    """Sums of every run on the test prompts; the references are those of all runs, and `arms` has a run per seed."""

    grid: Grid
    references: References
    arms: Mapping[str, tuple[Sums, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmOutcome:
    """One arm; `over_best_fixed` is a geometric mean over compressions, and comparisons are with the first arm."""

    name: str
    over_best_fixed: Interval
    by_compression: Mapping[str, Interval]
    by_seed: tuple[float, ...]
    over_reference: Interval | None
    verdict: PairedComparison | None


def read_sums(runs: Sequence[ChildRun]) -> StudySums:
    """Reads the evaluations of finished runs.

    Raises:
        CheckpointError: if one is missing or damaged, or was made on other prompts or another clock than the first.
    """
    evaluations = {run: _Evaluation(run.folder / EVALUATION) for run in runs}
    first = evaluations[runs[0]]
    arms: dict[str, list[Sums]] = {}
    for run, found in evaluations.items():
        if found.keys != first.keys or found.sums[BEST_FIXED] != first.sums[BEST_FIXED]:
            raise CheckpointError(
                f"Expected {run.folder} to be evaluated on the prompts and the clock of {runs[0].folder}, got others. "
                "Delete it and run the study again."
            )
        arms.setdefault(run.arm, []).append(found.table(first.grid, found.controller))
    plain, best, bound = (first.table(first.grid, name) for name in _BASELINES)
    return StudySums(
        grid=first.grid,
        references=References(autoregressive=plain, best_fixed=best, clairvoyant=bound),
        arms={name: tuple(tables) for name, tables in arms.items()},
    )


class _Evaluation:
    def __init__(self, folder: Path) -> None:
        try:
            content = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
            self.controller = str(content["controllers"][0])
            self.sums: dict[str, dict[tuple[str, ...], list[float]]] = {n: {} for n in (self.controller, *_BASELINES)}
            with (folder / PER_PROMPT).open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    if row["controller"] in self.sums:
                        key = row["prompt_id"], row["task"], row["compression"]
                        self.sums[row["controller"]][key] = [float(row[name]) for name in _COUNTS]
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise CheckpointError(
                f"Expected a run's evaluation in {folder}, got: {error}. Run the study again."
            ) from error
        self.keys = sorted(self.sums[BEST_FIXED])

    @property
    def grid(self) -> Grid:
        prompts = sorted({(prompt, task) for prompt, task, _ in self.keys})
        compressions = tuple(sorted({compression for *_, compression in self.keys}))
        return Grid(
            prompt_ids=tuple(prompt for prompt, _ in prompts),
            tasks=tuple(task for _, task in prompts),
            compressions=compressions,
            rows=np.array([prompts.index((prompt, task)) for prompt, task, _ in self.keys], np.int64),
            columns=np.array([compressions.index(compression) for *_, compression in self.keys], np.int64),
        )

    def table(self, grid: Grid, controller: str) -> Sums:
        """The files hold no gammas by prompt, so `gammas` is a placeholder."""
        values = np.zeros((len(_COUNTS), len(grid.prompt_ids), len(grid.compressions)))
        for key, row, column in zip(self.keys, grid.rows, grid.columns, strict=True):
            values[:, row, column] = self.sums[controller][key]
        unknown = np.zeros((*values.shape[1:], 1))
        unknown[grid.rows, grid.columns] = 1.0
        return Sums(name=controller, gammas=unknown, **dict(zip(_COUNTS, values, strict=True)))


def measure_arms(sums: StudySums, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> tuple[ArmOutcome, ...]:
    """Estimates with intervals and claims, in the order of the arms; the same seed gives the same outcomes."""
    counts = resample_counts(sums.grid.tasks, num_resamples, seed)
    rng = run_generator(seed)
    entrants = [Entrant.drawn(name, runs, num_resamples=num_resamples, rng=rng) for name, runs in sums.arms.items()]
    groups = {g.compression: g for g in groups_of(sums.grid, sums.references.best_fixed.tokens) if g.task == ALL}
    whole = groups[ALL]
    first, *others = entrants
    verdicts: dict[str, PairedComparison] = {}
    if others:
        family = family_against(first, others, whole, question="first arm", num_resamples=num_resamples, seed=seed)
        verdicts = {verdict.controller: verdict for verdict in family.pairs}
    return tuple(_outcome(entrant, first, groups, sums.references, counts, verdicts) for entrant in entrants)


def _outcome(
    entrant: Entrant,
    first: Entrant,
    groups: Mapping[str, Group],
    references: References,
    counts: Float64,
    verdicts: Mapping[str, PairedComparison],
) -> ArmOutcome:
    rows = {name: measure(entrant, group, references, counts) for name, group in groups.items()}
    best = groups[ALL].take(references.best_fixed.seconds).sum(axis=0)
    by_seed = [np.log(best / groups[ALL].take(run.seconds).sum(axis=0)).mean() for run in entrant.runs]
    return ArmOutcome(
        name=entrant.name,
        over_best_fixed=rows[ALL].geomean_vs_best_fixed,
        by_compression={name: row.speedup_vs_best_fixed for name, row in rows.items() if name != ALL},
        by_seed=tuple(float(np.exp(value)) for value in by_seed),
        over_reference=None if entrant is first else speedups(entrant, first, groups[ALL], counts)[1],
        verdict=verdicts.get(entrant.name),
    )


def cells(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a study's table, from the content of `study.json`."""
    compressions = list(record["outcomes"][0]["by_compression"])
    header = [*HEADER, *(compressions if len(compressions) > 1 else [])]
    rows = []
    for outcome in record["outcomes"]:
        over = outcome["over_reference"]
        row = [outcome["name"], _show(outcome["over_best_fixed"]), _show(over) if over else "", outcome["claim"] or ""]
        if len(compressions) > 1:
            row += [_show(outcome["by_compression"][name]) for name in compressions]
        rows.append(row)
    return header, rows


def _show(interval: Mapping[str, Any]) -> str:
    return format_interval(Interval(**interval))


def render(record: Mapping[str, Any]) -> str:
    """A study's table and its explanation as text, from the content of `study.json`."""
    header, rows = cells(record)
    cost, traces = record["cost"], record["traces"]["name"]
    return (
        f"{record['question']}\n\n{render_table(header, rows)}\n\n"
        f"{record['test_prompts']} test prompts; clock {cost['name']} ({cost['clock']}), traces {traces}; "
        f"{_seeds(record['seeds'])}.\n"
        "Brackets: 95 % bootstrap intervals over prompts and seeds. Over best fixed: geometric mean of compressions.\n"
        "Against the first arm: sign-flip tests at 5 %, Holm's control over the study's arms.\n"
    )


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"one seed, {seeds[0]}: how much a seed moves this is not in the intervals"
    return f"{len(seeds)} seeds, {', '.join(map(str, seeds))}"


def draw(record: Mapping[str, Any]) -> Figure:
    """Every arm's speed-up over the best fixed gamma: interval, mean, and a dot per seed."""
    outcomes = record["outcomes"]
    names = [fill(figure_text(outcome["name"]), _NAME_WIDTH) for outcome in outcomes]
    lines = max(name.count("\n") for name in names) + 1
    height = 1.7 + (0.17 + 0.17 * lines) * len(outcomes)
    figure = Figure(figsize=(8.4, height), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    for row, outcome in enumerate(outcomes):
        mean = outcome["over_best_fixed"]
        colour = PALETTE[0] if row == 0 else PALETTE[1]
        low, high = (mean[key] if mean[key] is not None else mean["estimate"] for key in ("low", "high"))
        axes.hlines(row, low, high, color=INK, linewidth=1.2)
        axes.scatter(outcome["by_seed"], [row] * len(outcome["by_seed"]), s=10, color="#9A9A9A", zorder=2)
        axes.scatter([mean["estimate"]], [row], s=34, color=colour, zorder=3)
    first = outcomes[0]["over_best_fixed"]["estimate"]
    axes.axvline(first, color=PALETTE[0], linewidth=1)
    axes.axvline(1.0, color=INK, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(outcomes)), names, fontsize=9)
    axes.set_ylim(len(outcomes) - 0.5, -0.5)
    figure.suptitle(fill(figure_text(record["question"]), _TITLE_WIDTH), fontsize=10, x=0.01, ha="left")
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.6)
    tidy(axes)
    figure.supxlabel(
        "throughput over the best fixed gamma (×); dashed: that gamma itself\n"
        f"n = {record['test_prompts']} test prompts, {len(record['seeds'])} seed(s), small dots; times from cost table "
        f"{figure_text(record['cost']['name'])}. Whiskers: 95 % bootstrap intervals over prompts and seeds.",
        fontsize=8,
    )
    return figure
