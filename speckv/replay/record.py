# SPDX-License-Identifier: Apache-2.0
"""What a replay of whole sequences adds up to."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speckv.types import IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLog:
    """Every decode step of a replay, in the order they were made; arrays of one row a step.

    Attributes:
        sequence: Row of the record that made the step.
        position: Tokens emitted before it.
        gamma: Speculation length asked for.
        num_drafted: Tokens really drafted.
        num_accepted: Drafted tokens kept.
        num_emitted: Tokens added to the output.
        seconds: Time of the step.
    """

    sequence: IntArray
    position: IntArray
    gamma: IntArray
    num_drafted: IntArray
    num_accepted: IntArray
    num_emitted: IntArray
    seconds: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRecord:
    """Sums over each sequence; prefill is in none of them.

    Rates over several sequences are sums divided by sums, never means of rates.

    Attributes:
        prompt_ids: One a sequence.
        tasks: One a sequence.
        compressions: One a sequence.
        num_tokens: Shape [S]; tokens emitted by decode steps: all but the prefill's.
        seconds: Shape [S]; time of all decode steps.
        num_steps: Shape [S]; decode steps, so target passes.
        num_drafted: Shape [S].
        num_accepted: Shape [S].
        num_tested: Shape [S].
        gamma_counts: Shape [S, gamma_max + 1]; how often each speculation length was asked for.
        log: Every step, if it was asked for.
    """

    prompt_ids: tuple[str, ...]
    tasks: tuple[str, ...]
    compressions: tuple[str, ...]
    num_tokens: IntArray
    seconds: NDArray[np.float64]
    num_steps: IntArray
    num_drafted: IntArray
    num_accepted: IntArray
    num_tested: IntArray
    gamma_counts: IntArray
    log: StepLog | None = None

    @property
    def throughput(self) -> float:
        """Tokens a second, over all sequences."""
        return _ratio(self.num_tokens.sum(), self.seconds.sum())

    @property
    def block_efficiency(self) -> float:
        """Tokens emitted a target pass."""
        return _ratio(self.num_tokens.sum(), self.num_steps.sum())

    @property
    def acceptance_rate(self) -> float:
        """Accepted over tested tokens."""
        return _ratio(self.num_accepted.sum(), self.num_tested.sum())

    @property
    def draft_efficiency(self) -> float:
        """Accepted over drafted tokens."""
        return _ratio(self.num_accepted.sum(), self.num_drafted.sum())

    def take(self, rows: Sequence[int]) -> "ReplayRecord":
        """Some sequences in another order, without the log."""
        taken: dict[str, Any] = {}
        for f in fields(ReplayRecord):
            value = getattr(self, f.name)
            if f.name == "log":
                taken[f.name] = None
            else:
                taken[f.name] = tuple(value[r] for r in rows) if isinstance(value, tuple) else value[list(rows)]
        return ReplayRecord(**taken)

    @staticmethod
    def concatenate(parts: Sequence["ReplayRecord"]) -> "ReplayRecord":
        """Joins records of different sequences; logs are joined if all have one."""
        joined: dict[str, Any] = {}
        for f in fields(ReplayRecord):
            values = [getattr(part, f.name) for part in parts]
            if f.name == "log":
                joined[f.name] = _concatenate_logs(parts)
            elif isinstance(values[0], tuple):
                joined[f.name] = tuple(item for value in values for item in value)
            else:
                joined[f.name] = np.concatenate(values)
        return ReplayRecord(**joined)


def _ratio(numerator: float | np.int64, denominator: float | np.int64) -> float:
    return float(numerator) / float(denominator) if denominator else float("nan")


def _concatenate_logs(parts: Sequence[ReplayRecord]) -> StepLog | None:
    logs = [part.log for part in parts if part.log is not None]
    if len(logs) < len(parts):
        return None
    starts = np.cumsum([0, *(len(part.num_steps) for part in parts[:-1])])
    columns = {f.name: np.concatenate([getattr(log, f.name) for log in logs]) for f in fields(StepLog)}
    columns["sequence"] = np.concatenate([log.sequence + start for log, start in zip(logs, starts, strict=True)])
    return StepLog(**columns)
