# SPDX-License-Identifier: Apache-2.0
"""Sums of a replay per prompt, and the figures that follow by dividing them.

Sums first, ratios last. The text does not depend on the controller, so tokens per second over a set of prompts is the
set's tokens over its total time; a mean of per-prompt rates would rank controllers differently.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from speckv.evaluation.bootstrap import Float64, Interval, geometric_mean_ratio_interval, ratio_interval
from speckv.replay import CompiledTraces, ReplayRecord

ALL = "all"
"""Stands for every compression or every task in a group's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """One controller's sums, one row a prompt and one column a compression; zero where a recording is missing.

    Attributes:
        name: The controller.
        tokens: Shape [prompts, compressions]; emitted in decode steps, so the prefill's token is left out.
        seconds: Decode time.
        steps: Decode steps, which is target passes.
        drafted: Drafted tokens.
        accepted: Drafted tokens kept.
        tested: Drafted tokens judged.
        gammas: Shape [prompts, compressions, gamma_max + 1]; decisions by gamma asked for.
    """

    name: str
    tokens: Float64
    seconds: Float64
    steps: Float64
    drafted: Float64
    accepted: Float64
    tested: Float64
    gammas: Float64


def pooled(name: str, runs: Sequence[Sums]) -> Sums:
    """Means of several runs' sums over the same prompts."""

    def mean(field: str) -> Float64:
        averaged: Float64 = np.mean([getattr(run, field) for run in runs], axis=0)
        return averaged

    return Sums(name=name, **{f.name: mean(f.name) for f in fields(Sums) if f.name != "name"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Where each recorded sequence stands among prompts and compressions.

    Attributes:
        prompt_ids: Rows, sorted.
        tasks: Task of each row.
        compressions: Columns.
        rows: Row of each sequence.
        columns: Column of each sequence.
    """

    prompt_ids: tuple[str, ...]
    tasks: tuple[str, ...]
    compressions: tuple[str, ...]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @staticmethod
    def of(compiled: CompiledTraces) -> "Grid":
        """Builds the grid of a compiled trace set."""
        task_of = dict(zip(compiled.prompt_ids, compiled.tasks, strict=True))
        prompts = tuple(sorted(task_of))
        compressions = compiled.compression_names
        row_of = {name: row for row, name in enumerate(prompts)}
        column_of = {name: column for column, name in enumerate(compressions)}
        return Grid(
            prompt_ids=prompts,
            tasks=tuple(task_of[name] for name in prompts),
            compressions=compressions,
            rows=np.array([row_of[name] for name in compiled.prompt_ids], np.int64),
            columns=np.array([column_of[name] for name in compiled.compressions], np.int64),
        )

    def sums(self, name: str, record: ReplayRecord) -> Sums:
        """Arranges a replay's per-sequence sums."""
        return Sums(
            name=name,
            tokens=self._scatter(record.num_tokens),
            seconds=self._scatter(record.seconds),
            steps=self._scatter(record.num_steps),
            drafted=self._scatter(record.num_drafted),
            accepted=self._scatter(record.num_accepted),
            tested=self._scatter(record.num_tested),
            gammas=self._scatter(record.gamma_counts),
        )

    def _scatter(self, values: NDArray[np.int64] | Float64) -> Float64:
        grid = np.zeros((len(self.prompt_ids), len(self.compressions), *values.shape[1:]))
        grid[self.rows, self.columns] = values
        return grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A part of the grid that a table line speaks of.

    Attributes:
        compression: One compression or "all".
        task: One task or "all".
        prompts: Its rows.
        columns: Its columns.
    """

    compression: str
    task: str
    prompts: NDArray[np.int64]
    columns: NDArray[np.int64]

    def take(self, values: Float64) -> Float64:
        """Cuts the group out of a [prompts, compressions, ...] array."""
        return values[np.ix_(self.prompts, self.columns)]


def groups_of(grid: Grid, tokens: Float64) -> tuple[Group, ...]:
    """Every compression and all of them, for every task and all of them, as far as anything was recorded.

    Args:
        grid: Prompts and compressions.
        tokens: Shape [prompts, compressions]; zero where nothing was recorded.
    """
    tasks, recorded = np.array(grid.tasks), tokens > 0
    found = []
    for task in (ALL, *sorted(set(grid.tasks))):
        of_task = recorded & ((tasks == task) | (task == ALL))[:, np.newaxis]
        columns = np.flatnonzero(of_task.any(axis=0))
        for column in columns:
            prompts = np.flatnonzero(of_task[:, column])
            name = grid.compressions[column]
            found.append(Group(compression=name, task=task, prompts=prompts, columns=np.array([column])))
        if len(columns):
            prompts = np.flatnonzero(of_task.any(axis=1))
            found.append(Group(compression=ALL, task=task, prompts=prompts, columns=columns))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerMetrics:
    """One controller's figures in one group.

    Attributes:
        controller: Its name.
        throughput: Decoded tokens per second.
        speedup_vs_ar: Over plain decoding, with a paired interval.
        speedup_vs_best_fixed: Over the best fixed gamma tuned on train prompts for each compression.
        geomean_vs_ar: Geometric mean over compressions of the speed-up over plain decoding.
        geomean_vs_best_fixed: The same over the best fixed gamma.
        tokens_per_step: Emitted tokens per target pass.
        drafted_per_token: Drafted tokens per emitted token.
        acceptance_rate: Accepted over tested; None if nothing was drafted.
        mean_gamma: Mean gamma asked for.
        headroom_share: (throughput - best fixed) / (clairvoyant - best fixed); None where there is no room.
        seeds_iqm: Interquartile mean over seeds of the geometric mean over compressions of the speed-up over the best
            fixed gamma; None for a single run.
    """

    controller: str
    throughput: float
    speedup_vs_ar: Interval
    speedup_vs_best_fixed: Interval
    geomean_vs_ar: Interval
    geomean_vs_best_fixed: Interval
    tokens_per_step: float
    drafted_per_token: float
    acceptance_rate: float | None
    mean_gamma: float
    headroom_share: float | None
    seeds_iqm: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """The controllers that all others are measured against."""

    autoregressive: Sums
    best_fixed: Sums
    clairvoyant: Sums


def measure(sums: Sums, group: Group, references: References, counts: Float64) -> ControllerMetrics:
    """Computes one row.

    Args:
        sums: The controller's.
        group: Where.
        references: Baselines and bound on the same grid.
        counts: Shape [resamples, prompts of the whole grid], from `resample_counts`.
    """
    tokens, seconds = group.take(sums.tokens), group.take(sums.seconds)
    steps, drafted = group.take(sums.steps).sum(), group.take(sums.drafted).sum()
    tested = group.take(sums.tested).sum()
    by_gamma = group.take(sums.gammas).sum(axis=(0, 1))
    plain, fixed = group.take(references.autoregressive.seconds), group.take(references.best_fixed.seconds)
    weights = counts[:, group.prompts]
    throughput = float(tokens.sum() / seconds.sum())
    vs_ar = ratio_interval(plain.sum(axis=1), seconds.sum(axis=1), weights)
    vs_best_fixed = ratio_interval(fixed.sum(axis=1), seconds.sum(axis=1), weights)
    several = len(group.columns) > 1
    return ControllerMetrics(
        controller=sums.name,
        throughput=throughput,
        speedup_vs_ar=vs_ar,
        speedup_vs_best_fixed=vs_best_fixed,
        geomean_vs_ar=geometric_mean_ratio_interval(plain, seconds, weights) if several else vs_ar,
        geomean_vs_best_fixed=geometric_mean_ratio_interval(fixed, seconds, weights) if several else vs_best_fixed,
        tokens_per_step=float(tokens.sum() / steps),
        drafted_per_token=float(drafted / tokens.sum()),
        acceptance_rate=float(group.take(sums.accepted).sum() / tested) if tested else None,
        mean_gamma=float(by_gamma @ np.arange(len(by_gamma)) / by_gamma.sum()),
        headroom_share=_headroom_share(throughput, group, references),
    )


def _headroom_share(throughput: float, group: Group, references: References) -> float | None:
    fixed, bound = (throughput_of(s, group) for s in (references.best_fixed, references.clairvoyant))
    # Below a tenth of a per mille the room is rounding.
    return (throughput - fixed) / (bound - fixed) if bound > fixed * (1 + 1e-4) else None


def throughput_of(sums: Sums, group: Group) -> float:
    """Tokens per second of a controller in a group."""
    return float(group.take(sums.tokens).sum() / group.take(sums.seconds).sum())


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean of positive values.

    >>> round(geometric_mean([1.0, 4.0]), 9)
    2.0
    """
    return float(np.exp(np.mean(np.log(values))))


QUARTERS = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Prompts of similar length. Lengths are in tokens, the chat template's included.

    Attributes:
        shortest: Prompt.
        longest: Prompt.
        longest_context: Prompt and what was generated, of the sequence that got longest.
        prompts: Rows of the grid.
    """

    shortest: int
    longest: int
    longest_context: int
    prompts: NDArray[np.int64]

    @property
    def name(self) -> str:
        """The bounds, as a table shows them."""
        return f"{self.shortest}-{self.longest}" if self.longest > self.shortest else str(self.shortest)


def length_buckets(compiled: CompiledTraces, grid: Grid) -> tuple[Bucket, ...]:
    """Cuts the prompts at the quartiles of their lengths, shortest first; prompts of one length stay together.

    The length of the prompt, and not of prompt and text, decides: it is known before decoding, and the same at every
    compression, whose texts may differ.
    """
    prompt_len = np.zeros(len(grid.prompt_ids), np.int64)
    np.maximum.at(prompt_len, grid.rows, compiled.prompt_len)
    context = np.zeros(len(grid.prompt_ids), np.int64)
    np.maximum.at(context, grid.rows, compiled.prompt_len + compiled.length)
    cuts = np.quantile(prompt_len, QUARTERS, method="inverted_cdf")
    quarter = np.searchsorted(cuts, prompt_len, side="left")
    found = []
    for number in range(len(cuts) + 1):
        prompts = np.flatnonzero(quarter == number)
        if len(prompts):
            inside = prompt_len[prompts]
            found.append(
                Bucket(
                    shortest=int(inside.min()),
                    longest=int(inside.max()),
                    longest_context=int(context[prompts].max()),
                    prompts=prompts,
                )
            )
    return tuple(found)


def groups_by_length(bucket: Bucket, whole: tuple[Group, ...], tokens: Float64) -> tuple[Group, ...]:
    """Cuts a bucket out of groups of all tasks, as far as anything was recorded there.

    Args:
        bucket: Prompts of similar length.
        whole: One group a compression and one of all.
        tokens: Shape [prompts, compressions] of the whole grid; zero where nothing was recorded.
    """
    cut = []
    for group in whole:
        prompts = np.intersect1d(group.prompts, bucket.prompts)
        columns = group.columns[(tokens[np.ix_(prompts, group.columns)] > 0).any(axis=0)]
        if len(columns):
            cut.append(Group(compression=group.compression, task=ALL, prompts=prompts, columns=columns))
    return tuple(cut)
