# SPDX-License-Identifier: Apache-2.0
"""The clairvoyant bound: the least time in which any controller could have decoded the recorded sequences.

From a state (position i, draft lag l), with V(n, .) = 0 after the last token, a step either decodes plainly,

    verify(1) + V(i + 1, l + 1),

or drafts d tokens, of which a = min(d, accepted length) are kept,

    draft(1 + l) + [(d - 1) draft(1) + verify(d + 1) + V(i + min(a + 1, n - i), 1 if a = d else 0)].

The bracket does not depend on the lag, so its best d is found once a position. All lags up to i - 1 are kept, so the
optimum is exact. Lag i - 1 is a request without a draft so far, whose first one may also have to read the prompt.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speckv.cost import CompiledCost
from speckv.replay.batch import CompiledTraces, ReplayBatch
from speckv.replay.runs import Choice, ReplayRecord, run_to_end
from speckv.types import IntArray

_STATES_AT_ONCE = 2**25
"""Bound on sequences x positions x lags held in memory, one byte each."""


def clairvoyant(
    compiled: CompiledTraces, cost: CompiledCost, *, budget: int | None = None, log: bool = False
) -> ReplayRecord:
    """Decodes every sequence in the least possible time, with full knowledge of it; decisions are free.

    Between equally fast choices the smaller speculation length wins.
    """
    size = sequences_at_once(compiled)
    records = []
    for start in range(0, len(compiled), size):
        sequences = np.arange(start, min(start + size, len(compiled)))
        batch = ReplayBatch(compiled, cost, len(sequences), budget=budget)
        batch.assign(np.arange(len(sequences)), sequences)
        plan = plan_optimum(batch)
        records.append(run_to_end(batch, plan.choice, log=log))
    return ReplayRecord.concatenate(records)


def sequences_at_once(compiled: CompiledTraces) -> int:
    """Most sequences whose plan fits into memory together."""
    longest = int(compiled.length.max()) + 1
    return max(1, _STATES_AT_ONCE // longest**2)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimalPlan:
    """Best decisions: draft nothing where `plain[i, row, lag]`, else `depth[i, row]` tokens."""

    plain: NDArray[np.bool_]
    depth: IntArray

    def choice(self, batch: ReplayBatch) -> Choice:
        """The fastest continuation of each slot, whatever its past; meaningless in idle slots."""
        rows = np.arange(batch.num_slots)
        position = np.minimum(batch.history.emitted, len(self.depth) - 1)
        plain = self.plain[position, rows, np.minimum(batch.history.draft_lag, self.plain.shape[2] - 1)]
        return Choice(gammas=np.where(plain, 0, self.depth[position, rows]))


def plan_optimum(batch: ReplayBatch) -> OptimalPlan:
    """Solves the recursion backwards, position by position, for all slots and lags at once; each has a sequence."""
    number, cost, comp = batch.num_slots, batch.cost, batch.comp_index
    end = int(batch.length.max())
    plain = np.ones((end + 1, number, end + 1), np.bool_)
    depth = np.zeros((end + 1, number), np.int64)
    # Seconds to the end after the next step: at any lag from the following position, at lags 0 and 1 from every one.
    following = np.zeros((number, end + 1))
    after_draft = np.zeros((end + 1, number, 2))
    for position in range(end - 1, 0, -1):
        context = batch.prompt_len + position
        bracket, depth[position] = _best_draft(batch, position, after_draft)
        lags = np.arange(position)
        columns = comp[:, None], context[:, None]
        drafting = cost.first_pass_seconds(columns[0], lags, columns[1]) + bracket[:, None]
        drafting[:, -1] += cost.prompt_seconds(comp, batch.prompt_len)  # with the greatest lag, nothing was drafted yet
        decoding = cost.autoregressive_s(comp, context)[:, None] + following[:, 1 : position + 1]
        plain[position, :, :position] = decoding <= drafting
        following = np.minimum(decoding, drafting)
        following[batch.length <= position] = 0.0
        after_draft[position, :, : min(position, 2)] = following[:, :2]
    return OptimalPlan(plain=plain, depth=depth)


def _best_draft(
    batch: ReplayBatch, position: int, after_draft: NDArray[np.float64]
) -> tuple[NDArray[np.float64], IntArray]:
    """Least value of the bracket for each row, infinite where nothing can be drafted, and the depth that attains it."""
    limit, accepted_length = batch.draft_limits(np.minimum(position, batch.length))
    depths = np.arange(1, batch.compiled.gamma_max + 1)
    accepted = np.minimum(depths, accepted_length[:, None])
    landing = np.minimum(position + accepted + 1, batch.length[:, None])
    value = batch.cost.rest_seconds(batch.comp_index[:, None], depths, (batch.prompt_len + position)[:, None])
    value += after_draft[landing, np.arange(batch.num_slots)[:, None], (accepted == depths).astype(np.int64)]
    value[depths > limit[:, None]] = np.inf
    best = np.argmin(value, axis=1)
    return value[np.arange(batch.num_slots), best], best + 1
