# SPDX-License-Identifier: Apache-2.0
"""The number to beat: every constant gamma, replayed, and the best one for each compression."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speckv.cost import CompiledCost
from speckv.evaluation.metrics import Grid, Sums
from speckv.replay import CompiledTraces, replay_fixed
from speckv.traces import GAMMA_MAX

AUTOREGRESSIVE = "autoregressive"
BEST_FIXED = "best-fixed"
CLAIRVOYANT = "clairvoyant"


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

    def combine(self, gammas: Mapping[str, int], name: str = BEST_FIXED) -> Sums:
        """Sums of a controller that plays its own constant gamma for each compression."""
        chosen = [self.sums[gammas[c]] for c in self.grid.compressions]

        def pick(field: str) -> NDArray[np.float64]:
            return np.stack([getattr(s, field)[:, k] for k, s in enumerate(chosen)], axis=1)

        return Sums(
            name=name,
            tokens=pick("tokens"),
            seconds=pick("seconds"),
            steps=pick("steps"),
            drafted=pick("drafted"),
            accepted=pick("accepted"),
            tested=pick("tested"),
            gammas=pick("gammas"),
        )


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
