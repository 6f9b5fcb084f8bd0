# SPDX-License-Identifier: Apache-2.0
"""Sums of a replay per prompt and compression, and the groups of them that a comparison reports on.

Sums first, ratios last: tokens per second over a set of prompts is the set's tokens over its total time, and a mean of
per-prompt rates would rank controllers differently.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from speckv.evaluation.bootstrap import Float64
from speckv.replay import CompiledTraces, ReplayRecord
from speckv.types import IntArray

ALL = "all"
"""Stands for every compression or every task in a group's name."""
QUARTERS = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """One controller's sums, of shape [prompts, compressions]; zero where a recording is missing.

    Attributes:
        tokens: Emitted in decode steps; the token of the prefill is left out.
        steps: Decode steps, each one target pass.
        tested: Drafted tokens up to and with the first rejection.
        gammas: Shape [prompts, compressions, gamma_max + 1]; decisions by chosen gamma.
    """

    name: str
    tokens: Float64
    seconds: Float64
    steps: Float64
    drafted: Float64
    accepted: Float64
    tested: Float64
    gammas: Float64


def combine_sums(name: str, several: Sequence[Sums], combine: Callable[[Float64], Float64]) -> Sums:
    """Applies a function to each field of several sums over the same prompts, stacked along a new first axis."""
    names = [f.name for f in fields(Sums) if f.name != "name"]
    return Sums(name=name, **{field: combine(np.stack([getattr(s, field) for s in several])) for field in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Row (prompt) and column (compression) of each recorded sequence; `prompt_ids` is sorted."""

    prompt_ids: tuple[str, ...]
    tasks: tuple[str, ...]
    compressions: tuple[str, ...]
    rows: IntArray
    columns: IntArray

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
        """Arranges the sums of a replay's sequences."""
        return Sums(
            name=name,
            tokens=self.arrange(record.num_tokens),
            seconds=self.arrange(record.seconds),
            steps=self.arrange(record.num_steps),
            drafted=self.arrange(record.num_drafted),
            accepted=self.arrange(record.num_accepted),
            tested=self.arrange(record.num_tested),
            gammas=self.arrange(record.gamma_counts),
        )

    def arrange(self, values: IntArray | Float64) -> Float64:
        """Arranges values by sequence in an array of shape [prompts, compressions, ...], zero where none is."""
        grid = np.zeros((len(self.prompt_ids), len(self.compressions), *values.shape[1:]))
        grid[self.rows, self.columns] = values
        return grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The rows (`prompts`) and columns of one compression or "all", and of one task or "all"."""

    compression: str
    task: str
    prompts: IntArray
    columns: IntArray

    def take(self, values: Float64) -> Float64:
        """Cuts the group out of an array of shape [prompts, compressions, ...]."""
        return values[np.ix_(self.prompts, self.columns)]


def groups_of(grid: Grid, tokens: Float64) -> tuple[Group, ...]:
    """Groups of each compression and of all, for each task and for all, where `tokens` is not zero."""
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
class Bucket:
    """Prompts of similar length, as rows of the grid; lengths are in tokens and include the chat template.

    `longest_context` is the greatest length of a prompt with its text.
    """

    shortest: int
    longest: int
    longest_context: int
    prompts: IntArray

    @property
    def name(self) -> str:
        """The bounds, as a table shows them."""
        return f"{self.shortest}-{self.longest}" if self.longest > self.shortest else str(self.shortest)


def length_buckets(compiled: CompiledTraces, grid: Grid) -> tuple[Bucket, ...]:
    """Divides the prompts at the quartiles of their lengths, shortest first; prompts of equal length stay together."""
    prompt_len = np.zeros(len(grid.prompt_ids), np.int64)
    np.maximum.at(prompt_len, grid.rows, compiled.prompt_len)
    context = np.zeros(len(grid.prompt_ids), np.int64)
    np.maximum.at(context, grid.rows, compiled.prompt_len + compiled.length)
    cuts = np.quantile(prompt_len, QUARTERS, method="inverted_cdf")
    quarter = np.searchsorted(cuts, prompt_len, side="left")
    return tuple(
        Bucket(
            shortest=int(prompt_len[prompts].min()),
            longest=int(prompt_len[prompts].max()),
            longest_context=int(context[prompts].max()),
            prompts=prompts,
        )
        for prompts in (np.flatnonzero(quarter == number) for number in range(len(cuts) + 1))
        if len(prompts)
    )


def groups_by_length(bucket: Bucket, whole: tuple[Group, ...], tokens: Float64) -> tuple[Group, ...]:
    """Cuts a bucket out of groups of all tasks, where `tokens`, of the whole grid, is not zero."""
    cut = []
    for group in whole:
        prompts = np.intersect1d(group.prompts, bucket.prompts)
        columns = group.columns[(tokens[np.ix_(prompts, group.columns)] > 0).any(axis=0)]
        if len(columns):
            cut.append(Group(compression=group.compression, task=ALL, prompts=prompts, columns=columns))
    return tuple(cut)
