# SPDX-License-Identifier: Apache-2.0
"""Time that passes only where a test lets it: a clock, and models whose passes take what a function says."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from speckv.models.signals import Scores
from tests.fakes import TableModel, TableSequence

PassTime = Callable[[int, int], float]
"""Width and context of a pass, in tokens -> its seconds."""


class FakeClock:
    """Reads `now`, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedModel(TableModel):
    """A table of logits whose passes advance a clock."""

    def __init__(self, inner: TableModel, clock: FakeClock, pass_s: PassTime) -> None:
        super().__init__(inner.table, inner.context_limit)
        self.clock, self.pass_s = clock, pass_s

    def sequence(self) -> "TimedSequence":
        return TimedSequence(self)


class TimedSequence(TableSequence):
    model: TimedModel

    def extend(self, tokens: Sequence[int] | Tensor, *, num_logits: int | None = None) -> Tensor:
        self.model.clock.now += self.model.pass_s(len(tokens), self.length)
        return super().extend(tokens, num_logits=num_logits)


class TimedRows:
    """Rows for `time_passes` whose passes advance a clock; logs what it was asked."""

    def __init__(self, clock: FakeClock, pass_s: PassTime, batch: int) -> None:
        self.clock, self.pass_s, self.batch = clock, pass_s, batch
        self.length = 0
        self.asked: list[tuple[int, int, int]] = []

    def extend(self, tokens: Tensor, num_logits: int) -> Scores:
        assert tokens.shape[0] == self.batch
        width = tokens.shape[1]
        self.clock.now += self.pass_s(width, self.length)
        self.asked.append((width, self.length, num_logits))
        self.length += width
        return Scores.of(torch.zeros(self.batch * num_logits, 4))

    def truncate(self, length: int) -> None:
        self.length = min(self.length, length)
