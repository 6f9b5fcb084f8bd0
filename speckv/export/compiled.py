# SPDX-License-Identifier: Apache-2.0
"""Policies compiled down to what a library can express, with what that costs on the recordings.

Three floors lie below a policy that decides token by token: one gamma a step, from how much was accepted lately, which
every library shows; one gamma for each number of sequences that decode together; one constant. Each is tuned on train
prompts, and its loss is measured by replay on the test prompts: the share of the policy's tokens a second that is gone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from speckv.cost import CostTable
from speckv.evaluation.replays import compile_pair, controller_sums, tune_fixed
from speckv.observation import SCHEMA
from speckv.replay import replay_controller, visit
from speckv.runtime.acceptance_table import AcceptanceTable
from speckv.runtime.constant import ConstantGamma, ConstantPerCompression
from speckv.traces import TraceSet
from speckv.types import Controller, StoppingController

NUM_RANGES = 6
"""Of acceptance; finer tables gained nothing on held-out prompts of the shipped recordings."""
_MOVES = (-2, -1, 1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledConstant:
    """One number.

    Attributes:
        gamma: In tokens.
        loss: Share of the policy's tokens a second that it loses; below 0 where it gains.
    """

    gamma: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledTable:
    """One number for each batch.

    Attributes:
        gammas: Sequences that decode together -> gamma, in tokens; those that the cost table was measured at.
        loss: The same -> share of the policy's tokens a second that it loses there, keyed by the batch as text; None
            where a replay of one request cannot say: for a policy that decides token by token, at any batch above 1.
    """

    gammas: Mapping[int, int]
    loss: Mapping[str, float | None]


def compile_constant(controller: Controller, traces: TraceSet, cost: CostTable) -> CompiledConstant:
    """The constant that decodes the train prompts fastest.

    Args:
        controller: What is compiled down.
        traces: Of one compression, train and test prompts.
        cost: The clock.
    """
    train, test = traces.select(split="train"), traces.select(split="test")
    (gamma,) = tune_fixed(train, cost).best().values()
    return CompiledConstant(gamma=gamma, loss=loss_of(ConstantGamma(gamma), controller, test, cost))


def compile_batches(controller: Controller, traces: TraceSet, table: CostTable) -> CompiledTable:
    """The best constant at each batch that a cost table was measured at; arguments as for `compile_constant`."""
    (compression,) = traces.compressions
    train, test = traces.select(split="train"), traces.select(split="test")
    gammas: dict[int, int] = {}
    loss: dict[str, float | None] = {}
    for batch in table.batches(compression):
        cost = table.at_batch(batch)
        gammas[batch] = gamma = tune_fixed(train, cost).best()[compression]
        known = batch == 1 or not isinstance(controller, StoppingController)
        loss[str(batch)] = loss_of(ConstantGamma(gamma), controller, test, cost) if known else None
    return CompiledTable(gammas=gammas, loss=loss)


def compile_steps(
    controller: Controller, traces: TraceSet, cost: CostTable, *, ranges: int = NUM_RANGES
) -> tuple[AcceptanceTable, Mapping[str, float]]:
    """One gamma a step, looked up by how much was accepted lately.

    Args:
        controller: What is compiled down.
        traces: Train and test prompts; every compression gets a row of its own.
        cost: The clock.
        ranges: Of acceptance; their edges are quantiles of what the best constant meets.

    Returns:
        The table, and compression -> its loss.
    """
    train, test = traces.select(split="train"), traces.select(split="test")
    best = tune_fixed(train, cost).best()
    seen = visit(*compile_pair(train, cost), ConstantPerCompression(best)).observations[
        :, SCHEMA.index("acceptance_ema")
    ]
    edges = sorted({round(float(e), 3) for e in np.quantile(seen, np.arange(1, ranges) / ranges)})
    rows = {name: _climb(train.select(compressions=[name]), cost, name, edges, best[name]) for name in best}
    table = AcceptanceTable(edges, rows)
    losses = {name: loss_of(table, controller, test.select(compressions=[name]), cost) for name in test.compressions}
    return table, losses


def _climb(train: TraceSet, cost: CostTable, name: str, edges: Sequence[float], start: int) -> tuple[int, ...]:
    """Moves one range's gamma at a time while the train prompts decode faster; begins at the best constant."""
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
    """Share of a controller's tokens a second that another one lacks, on the test prompts."""
    pair = compile_pair(test, cost)
    rates = []
    for controller in (compiled, original):
        sums = controller_sums(controller, *pair)
        rates.append(float(sums.tokens.sum() / sums.seconds.sum()))
    return 1.0 - rates[0] / rates[1]
