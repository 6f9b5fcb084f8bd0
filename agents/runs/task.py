# SPDX-License-Identifier: Apache-2.0
"""Training data of a run: recordings by split, cost tables, the best fixed gamma, and scores on validation prompts."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from speckv.agents.runs.settings import AS_TESTED, CostSettings, DataSettings, LearnSettings
from speckv.cost import CostTable, describe_clock
from speckv.errors import ConfigError, TraceError
from speckv.evaluation.bootstrap import geometric_mean
from speckv.evaluation.compare import require_comparable, require_decode_steps, with_decode_steps
from speckv.evaluation.curves import Curve, Point, read_curve
from speckv.evaluation.metrics import Sums
from speckv.evaluation.replays import FixedSweep, compile_pair, controller_sums, sweep_fixed, tune_fixed
from speckv.evaluation.text import format_rate, render_table
from speckv.export.making import deployment
from speckv.traces import TraceSet, find_traces, split_validation
from speckv.types import GAMMA_MAX, Controller

logger = logging.getLogger(__name__)

_HEADER = ("compression", "dtype", "cost ratio", "plain tok/s", "best fixed gamma", "tok/s to beat", "x plain decoding")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Recordings and clock of a run.

    Attributes:
        train: Train prompts, validation prompts included; the best fixed gamma is tuned on them.
        validation: Train prompts that choose the best checkpoint.
        sweep: Every fixed gamma on `train`.
        learning_cost: The clock while learning and validating; `cost` unless `learn` names another.
        validation_gammas: Compression -> best fixed gamma on the recordings and the clock of learning.
    """

    traces_name: str
    train: TraceSet
    learning: TraceSet
    validation: TraceSet
    test: TraceSet
    cost: CostTable
    sweep: FixedSweep
    learning_cost: CostTable
    validation_gammas: dict[str, int]

    @property
    def deployment(self) -> Mapping[str, Any]:
        """What a decode loop needs beside a controller; see `speckv.export.making.deployment`."""
        return deployment(self.train, self.cost, self.best_fixed_gammas)

    @property
    def best_fixed_gammas(self) -> dict[str, int]:
        """Compression -> best fixed gamma on train prompts."""
        return self.sweep.best()

    def validator(self) -> "Validator":
        """Makes the validator of this task."""
        return Validator(self.validation, self.learning_cost, self.validation_gammas)

    def describe(self) -> str:
        """The first screen of a run: models, recordings, clock, and the number to beat."""
        metadata, cost = self.train.metadata, self.cost
        throughputs = self.sweep.throughputs()
        rows = []
        for column, (name, gamma) in enumerate(self.best_fixed_gammas.items()):
            best, plain = throughputs[gamma, column], throughputs[0, column]
            row = [name, metadata.dtype.get(name, "?"), f"{cost.cost_ratio(name):.3f}", format_rate(plain), str(gamma)]
            rows.append([*row, format_rate(best), f"{best / plain:.3f}"])
        learning, validation, test = (len(t.prompt_ids) for t in (self.learning, self.validation, self.test))
        return (
            f"target   {metadata.target_id}\n"
            f"draft    {metadata.draft_id}\n"
            f"traces   {self.traces_name}, sha256 {self.train.sha256[:16]}, {metadata.sampling['mode']}, "
            f"up to {metadata.max_new_tokens} tokens\n"
            f"prompts  {learning} to learn from, {validation} to validate on, {test} to test on; "
            f"tasks: {', '.join(self.train.tasks)}\n"
            f"cost     {cost.name} ({describe_clock(cost.kind, cost.checks)}), batch {cost.batch}, "
            f"sha256 {self.cost.sha256[:16]}\n\n"
            f"The number to beat: the best fixed gamma, tuned on the {len(self.train.prompt_ids)} train prompts\n"
            f"{render_table(_HEADER, rows)}\n"
        )


def load_splits(settings: DataSettings) -> tuple[TraceSet, TraceSet]:
    """Reads the selected train and test prompts; a TraceError if the file cannot be used or nothing is left."""
    traces = TraceSet.load(find_traces(settings.traces))
    chosen = with_decode_steps(traces.select(compressions=settings.compressions, tasks=settings.tasks))
    if missing := [split for split in ("train", "test") if all(s.split != split for s in chosen.sequences)]:
        raise TraceError(
            f"Expected train and test prompts in {settings.traces}, got none of split {missing[0]!r}"
            f"{' as selected' if settings.compressions or settings.tasks else ''}. Record prompts of both splits."
        )
    if (depth := chosen.metadata.gamma_max) < GAMMA_MAX:
        logger.warning("%s holds drafts of up to %d tokens: no controller drafts more.", settings.traces, depth)
    return chosen.select(split="train"), chosen.select(split="test")


def load_cost(settings: CostSettings) -> CostTable:
    """Reads the clock at the batch of the settings."""
    return CostTable.load(settings.table).at_batch(settings.batch)


def load_task(data: DataSettings, cost: CostSettings, learn: LearnSettings | None = None) -> Task:
    """Reads recordings and cost tables and tunes the best fixed gamma.

    Raises:
        TraceError: if the recordings cannot be used.
        CostTableError: if a cost table cannot be read or lacks a compression.
        ConfigError: if no prompt is left for a purpose, or those to learn from include test prompts or are too deep.
    """
    learn = learn or AS_TESTED
    train, test = load_splits(data)
    require_comparable(train, test)
    table = load_cost(cost)
    table.require((*train.compressions, *test.compressions))
    sweep = tune_fixed(train, table)
    material, clock, gammas = train, table, sweep.best()
    if learn.changes:
        chosen = replace(
            data,
            traces=learn.traces or data.traces,
            compressions=learn.compressions or data.compressions,
            tasks=learn.tasks or data.tasks,
        )
        material, _ = load_splits(chosen)
        clock = load_cost(replace(cost, table=learn.cost or cost.table))
        _require_fitting(material, test)
        gammas = tune_fixed(material, clock).best()
    try:
        learning, validation = split_validation(material, data.validation_fraction)
    except TraceError as error:
        raise ConfigError(
            f"Expected data.validation_fraction to leave prompts on both sides, got {data.validation_fraction} of "
            f"{len(material.prompt_ids)} train prompts. Choose another fraction or more prompts."
        ) from error
    learning = learning if learn.prompts is None else first_of_tasks(learning, learn.prompts)
    advice = "Choose another data.validation_fraction, or leave that compression out with data.compressions."
    require_decode_steps(learning, material.compressions, "train prompts to learn from", advice)
    require_decode_steps(validation, material.compressions, "train prompts to validate on", advice)
    return Task(
        traces_name=data.traces,
        train=train,
        learning=learning,
        validation=validation,
        test=test,
        cost=table,
        sweep=sweep,
        learning_cost=clock,
        validation_gammas=gammas,
    )


def first_of_tasks(traces: TraceSet, count: int) -> TraceSet:
    """Keeps the same `count` prompts of each task at every call; a smaller choice is part of a greater one."""
    tasks: dict[str, set[str]] = defaultdict(set)
    for sequence in traces.sequences:
        tasks[sequence.task].add(sequence.prompt_id)
    kept = {
        name
        for names in tasks.values()
        for name in sorted(names, key=lambda n: hashlib.sha256(f"first:{n}".encode()).hexdigest())[:count]
    }
    return traces.select(prompt_ids=kept)


def _require_fitting(material: TraceSet, test: TraceSet) -> None:
    if material.metadata.gamma_max > test.metadata.gamma_max:
        raise ConfigError(
            f"Expected learn.traces no deeper than data.traces, gamma_max {test.metadata.gamma_max}, got "
            f"{material.metadata.gamma_max}. Choose other recordings."
        )
    if shared := set(material.prompt_ids) & set(test.prompt_ids):
        raise ConfigError(
            f"Expected learn.traces to hold no test prompt of data.traces among its train prompts, got "
            f"{sorted(shared)[:3]}. Choose recordings that are split alike."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Score of a controller.

    Attributes:
        throughput: Tokens per second over all compressions, sums over sums.
        speedup_vs_best_fixed: Geometric mean over compressions; chooses the best checkpoint.
        by_compression: Compression -> speed-up over the best fixed gamma.
    """

    throughput: float
    best_fixed_throughput: float
    speedup_vs_ar: float
    speedup_vs_best_fixed: float
    by_compression: Mapping[str, float]
    tokens_per_step: float
    mean_gamma: float
    acceptance_rate: float
    sums: Sums

    def scalars(self) -> dict[str, float]:
        """TensorBoard tag -> value."""
        names = [field.name for field in fields(self) if field.name not in ("by_compression", "sums")]
        return {
            **{f"eval/{name}": getattr(self, name) for name in names},
            **{f"eval/speedup_vs_best_fixed_{name}": value for name, value in self.by_compression.items()},
        }


class Validator:
    """Scores controllers on one trace set."""

    def __init__(self, traces: TraceSet, cost: CostTable, best_fixed_gammas: Mapping[str, int]) -> None:
        self._compiled, self._compiled_cost = compile_pair(traces, cost)
        sweep = sweep_fixed(self._compiled, self._compiled_cost)
        self.grid = sweep.grid
        self._plain = sweep.sums[0]
        self.best_fixed = sweep.combine({c: best_fixed_gammas[c] for c in self.grid.compressions})

    @property
    def number_to_beat(self) -> float:
        """Throughput of the best fixed gammas here, sums over sums."""
        return float(self.best_fixed.tokens.sum() / self.best_fixed.seconds.sum())

    def read_curve(self, path: Path, *, num_resamples: int = 0) -> Curve:
        """Reads the `eval.csv` of a run with these validation prompts; see `evaluation.curves.read_curve`."""
        return read_curve(path, self.grid, self.best_fixed, num_resamples=num_resamples)

    def read_points(self, path: Path) -> tuple[Point, ...]:
        """The points of that curve."""
        return self.read_curve(path).points

    def score(self, controller: Controller) -> Score:
        """Replays every validation prompt once."""
        sums = controller_sums(controller, self._compiled, self._compiled_cost)
        seconds = sums.seconds.sum(axis=0)
        over_fixed = self.best_fixed.seconds.sum(axis=0) / seconds
        by_gamma = sums.gammas.sum(axis=(0, 1))
        tested = sums.tested.sum()
        return Score(
            throughput=float(sums.tokens.sum() / seconds.sum()),
            best_fixed_throughput=self.number_to_beat,
            speedup_vs_ar=float(geometric_mean(self._plain.seconds.sum(axis=0) / seconds)),
            speedup_vs_best_fixed=float(geometric_mean(over_fixed)),
            by_compression=dict(zip(self.grid.compressions, over_fixed.tolist(), strict=True)),
            tokens_per_step=float(sums.tokens.sum() / sums.steps.sum()),
            mean_gamma=float(by_gamma @ np.arange(len(by_gamma)) / by_gamma.sum()),
            acceptance_rate=float(sums.accepted.sum() / tested) if tested else 0.0,
            sums=sums,
        )
