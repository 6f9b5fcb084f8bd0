# SPDX-License-Identifier: Apache-2.0
"""The number to beat: every constant gamma, replayed, and the best one for each compression.

Two constants with privileged knowledge say what could be had by choosing gamma less often than once a step: the task
oracle is told each prompt's task, the request oracle each prompt's whole future.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from speckv.cost import CompiledCost
from speckv.evaluation.metrics import Grid, Sums
from speckv.replay import CompiledTraces, replay_fixed
from speckv.types import GAMMA_MAX, IntArray

AUTOREGRESSIVE = "autoregressive"
BEST_FIXED = "best-fixed"
CLAIRVOYANT = "clairvoyant"
TASK_ORACLE = "task-oracle"
REQUEST_ORACLE = "request-oracle"


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedSweep:
    """Every constant gamma on one trace set.

    Attributes:
        grid: Prompts and compressions of the set.
        sums: One entry per gamma, 0 to gamma_max; entry 0 is plain decoding.
    """

    grid: Grid
    sums: tuple[Sums, ...]

    def throughputs(self) -> NDArray[np.float64]:
        """Tokens per second, of shape [gammas, compressions]."""
        return np.array([s.tokens.sum(axis=0) / s.seconds.sum(axis=0) for s in self.sums])

    def best(self) -> dict[str, int]:
        """Gamma of the highest throughput for each compression; ties go to the smaller."""
        return dict(zip(self.grid.compressions, self.throughputs().argmax(axis=0).tolist(), strict=True))

    def best_by_task(self) -> dict[tuple[str, str], int]:
        """The same for each task and compression, as far as both were recorded together."""
        tasks = np.array(self.grid.tasks)
        found = {}
        for task in sorted(set(self.grid.tasks)):
            tokens, seconds = (
                np.array([getattr(s, field)[tasks == task].sum(axis=0) for s in self.sums])
                for field in ("tokens", "seconds")
            )
            for column, compression in enumerate(self.grid.compressions):
                if seconds[0, column] > 0:
                    found[task, compression] = int((tokens[:, column] / seconds[:, column]).argmax())
        return found

    def combine(self, gammas: Mapping[str, int], name: str = BEST_FIXED) -> Sums:
        """Sums of a controller that plays its own constant gamma for each compression."""
        by_column = [gammas[c] for c in self.grid.compressions]
        return self.play(np.tile(by_column, (len(self.grid.prompt_ids), 1)), name)

    def task_oracle(self, train: "FixedSweep") -> Sums:
        """Sums of the constants that were best on train prompts of the same task and compression.

        Where those were never recorded together, the best of the compression stands in.
        """
        by_task, by_compression = train.best_by_task(), train.best()
        chosen = [
            [by_task.get((task, c), by_compression[c]) for c in self.grid.compressions] for task in self.grid.tasks
        ]
        return self.play(np.array(chosen), TASK_ORACLE)

    def request_oracle(self) -> Sums:
        """Sums of the constant that is fastest for each request, known only in hindsight; ties go to the smaller."""
        return self.play(np.stack([s.seconds for s in self.sums]).argmin(axis=0), REQUEST_ORACLE)

    def play(self, gammas: IntArray, name: str) -> Sums:
        """Sums of a constant for each request.

        Args:
            gammas: Shape [prompts, compressions].
            name: Shown in tables.
        """
        rows, columns = np.indices(gammas.shape)

        def pick(field: str) -> NDArray[np.float64]:
            picked: NDArray[np.float64] = np.stack([getattr(s, field) for s in self.sums])[gammas, rows, columns]
            return picked

        return Sums(name=name, **{f.name: pick(f.name) for f in fields(Sums) if f.name != "name"})


def fixed_name(gamma: int) -> str:
    """Name of a constant gamma in tables.

    >>> fixed_name(4), fixed_name(0)
    ('fixed-4', 'autoregressive')
    """
    return f"fixed-{gamma}" if gamma else AUTOREGRESSIVE


def sweep_fixed(compiled: CompiledTraces, cost: CompiledCost, *, gamma_max: int = GAMMA_MAX) -> FixedSweep:
    """Replays every constant gamma from 0 to gamma_max."""
    grid = Grid.of(compiled)
    gammas = range(gamma_max + 1)
    sums = tuple(grid.sums(fixed_name(gamma), replay_fixed(compiled, cost, gamma)) for gamma in gammas)
    return FixedSweep(grid=grid, sums=sums)
