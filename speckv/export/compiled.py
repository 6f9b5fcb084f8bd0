# SPDX-License-Identifier: Apache-2.0
"""Policies compiled down to a table, for libraries that cannot run them, and the loss by it.

A table gives one gamma a step, by the recent acceptance rate, or one gamma a batch. It is tuned on train prompts. Its
loss is relative to the policy's tokens a second, in a replay of the test prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from speckv.cost import CostTable
from speckv.evaluation.replays import compile_pair, controller_sums, tune_fixed
from speckv.observation import SCHEMA
from speckv.replay import replay_controller, visit
from speckv.runtime.constant import AcceptanceTable, ConstantGamma, ConstantPerCompression
from speckv.traces import TraceSet
from speckv.types import Controller, StoppingController

NUM_RANGES = 6
"""Ranges of the acceptance rate; finer tables gained nothing on held-out prompts of the shipped recordings."""
_MOVES = (-2, -1, 1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledTable:
    """One gamma for each batch that the cost table was measured at, and its loss.

    The loss is None for a policy that decides token by token at a batch above 1, which a replay cannot time.
    """

    gammas: Mapping[int, int]
    loss: Mapping[int, float | None]


def compile_batches(controller: Controller, traces: TraceSet, table: CostTable) -> CompiledTable:
    """The best constant at each batch; `traces` hold train and test prompts of one compression."""
    (compression,) = traces.compressions
    train, test = traces.select(split="train"), traces.select(split="test")
    gammas: dict[int, int] = {}
    loss: dict[int, float | None] = {}
    for batch in table.batches(compression):
        cost = table.at_batch(batch)
        gammas[batch] = gamma = tune_fixed(train, cost).best()[compression]
        known = batch == 1 or not isinstance(controller, StoppingController)
        loss[batch] = loss_of(ConstantGamma(gamma), controller, test, cost) if known else None
    return CompiledTable(gammas=gammas, loss=loss)


def compile_steps(
    controller: Controller, traces: TraceSet, cost: CostTable
) -> tuple[AcceptanceTable, Mapping[str, float]]:
    """One gamma a step by compression and recent acceptance rate, and the loss by compression.

    The edges of the ranges of acceptance rates are quantiles under the best constant.
    """
    train, test = traces.select(split="train"), traces.select(split="test")
    best = tune_fixed(train, cost).best()
    observations = visit(*compile_pair(train, cost), ConstantPerCompression(best)).observations
    quantiles = np.quantile(observations[:, SCHEMA.index("acceptance_ema")], np.arange(1, NUM_RANGES) / NUM_RANGES)
    edges = sorted({round(float(edge), 3) for edge in quantiles})
    rows = {name: _climb(train.select(compressions=[name]), cost, name, edges, best[name]) for name in best}
    table = AcceptanceTable(edges, rows)
    losses = {name: loss_of(table, controller, test.select(compressions=[name]), cost) for name in test.compressions}
    return table, losses


def _climb(train: TraceSet, cost: CostTable, name: str, edges: Sequence[float], start: int) -> tuple[int, ...]:
    """Coordinate descent from the best constant."""
    compiled, compiled_cost = compile_pair(train, cost)

    def seconds(row: Sequence[int]) -> float:
        record = replay_controller(AcceptanceTable(edges, {name: row}), compiled, compiled_cost)
        return float(record.seconds.sum())

    row, least = [start] * (len(edges) + 1), seconds([start] * (len(edges) + 1))
    improved = True
    while improved:
        improved = False
        for place in range(len(row)):
            for move in _MOVES:
                tried = [*row[:place], row[place] + move, *row[place + 1 :]]
                if not 0 <= tried[place] <= train.metadata.gamma_max:
                    continue
                if (found := seconds(tried)) < least:
                    row, least, improved = tried, found, True
    return tuple(row)


def loss_of(compiled: Controller, original: Controller, test: TraceSet, cost: CostTable) -> float:
    """One minus the ratio of tokens a second on the test prompts."""
    pair = compile_pair(test, cost)
    both = (controller_sums(controller, *pair) for controller in (compiled, original))
    ours, theirs = (float(sums.tokens.sum() / sums.seconds.sum()) for sums in both)
    return 1.0 - ours / theirs
