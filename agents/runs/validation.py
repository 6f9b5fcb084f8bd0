# SPDX-License-Identifier: Apache-2.0
"""Evaluation on validation prompts: the same recordings at every call, so two calls differ by their policy alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speckv.cost import CostTable
from speckv.evaluation.bootstrap import geometric_mean
from speckv.evaluation.curves import Point, read_curve
from speckv.evaluation.metrics import Sums
from speckv.evaluation.replays import compile_pair, controller_sums, sweep_fixed
from speckv.traces import TraceSet
from speckv.types import Controller


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How a controller did.

    Attributes:
        throughput: Tokens per second over all compressions, sums over sums.
        best_fixed_throughput: The same of the best fixed gammas.
        speedup_vs_ar: Geometric mean over compressions.
        speedup_vs_best_fixed: Geometric mean over compressions; what chooses the best checkpoint.
        by_compression: Compression -> speed-up over the best fixed gamma.
        tokens_per_step: Emitted tokens per target pass.
        mean_gamma: Mean gamma asked for.
        acceptance_rate: Accepted over tested tokens, 0 if nothing was drafted.
        sums: Everything these were computed from.
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
        return {
            "eval/throughput": self.throughput,
            "eval/best_fixed_throughput": self.best_fixed_throughput,
            "eval/speedup_vs_ar": self.speedup_vs_ar,
            "eval/speedup_vs_best_fixed": self.speedup_vs_best_fixed,
            "eval/tokens_per_step": self.tokens_per_step,
            "eval/mean_gamma": self.mean_gamma,
            "eval/acceptance_rate": self.acceptance_rate,
            **{f"eval/speedup_vs_best_fixed_{name}": value for name, value in self.by_compression.items()},
        }


class Validator:
    """Scores controllers on one trace set.

    Args:
        traces: Validation prompts.
        cost: The clock.
        best_fixed_gammas: Tuned elsewhere, on all train prompts.
    """

    def __init__(self, traces: TraceSet, cost: CostTable, best_fixed_gammas: Mapping[str, int]) -> None:
        self._compiled, self._compiled_cost = compile_pair(traces, cost)
        sweep = sweep_fixed(self._compiled, self._compiled_cost, gamma_max=traces.metadata.gamma_max)
        self.grid = sweep.grid
        self._plain = sweep.sums[0]
        self.best_fixed = sweep.combine({c: best_fixed_gammas[c] for c in self.grid.compressions})

    @property
    def number_to_beat(self) -> float:
        """Throughput of the best fixed gammas here, sums over sums."""
        return float(self.best_fixed.tokens.sum() / self.best_fixed.seconds.sum())

    def read_points(self, path: Path) -> tuple[Point, ...]:
        """What the `eval.csv` of a run says that was scored here; see `read_curve`."""
        return read_curve(path, self.grid, self.best_fixed).points

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
