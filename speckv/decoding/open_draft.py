# SPDX-License-Identifier: Apache-2.0
"""A draft as it grows, on the device and on the host."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speckv.decoding.protocols import Proposal
from speckv.decoding.sampling import check_finite
from speckv.decoding.step import up_to_end
from speckv.types import NUM_SIGNALS, FloatArray


@dataclass(slots=True, kw_only=True)
class OpenDraft:
    """A draft as it grows.

    Attributes:
        gamma: What was asked for.
        limit: What the budget allows of it.
        proposals: On the device.
        tokens: Those of the proposals that the host knows.
        found: Shape [tokens, 3]; their signals.
        spans: From when to when time was spent on it.
    """

    gamma: int
    limit: int
    proposals: list[Proposal] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    found: FloatArray = field(default_factory=lambda: np.zeros((0, NUM_SIGNALS), np.float32))
    spans: list[tuple[Any, Any]] = field(default_factory=list)

    def fetch(self) -> None:
        """Brings what the host does not know yet from the device, in one transfer."""
        self.take(to_host(self.unknown()))

    def unknown(self) -> list[Tensor]:
        """Signals and token of each proposal that the host does not know, of shape [1, 4]."""
        return [signal_rows(proposal.signals, proposal.token) for proposal in self.proposals[len(self.tokens) :]]

    def take(self, rows: FloatArray) -> None:
        """Notes rows of `unknown` that came to the host."""
        check_finite(rows, "draft")
        self.found = np.concatenate([self.found, rows[:, :NUM_SIGNALS]])
        self.tokens += rows[:, NUM_SIGNALS].astype(int).tolist()

    def cut(self, eos_token_ids: frozenset[int]) -> None:
        """Drops what was drafted behind an end of text: a device that is not waited for runs on past it."""
        self.tokens = up_to_end(self.tokens, eos_token_ids)
        self.found = self.found[: len(self.tokens)]

    @property
    def seconds(self) -> float:
        """Time spent on it so far; waits for the device."""
        return float(sum(later - earlier for earlier, later in self.spans))


def signal_rows(signals: Tensor, tokens: Tensor) -> Tensor:
    """Signals of shape [rows, 3] and token ids of shape [rows] side by side."""
    return torch.cat([signals, tokens[:, None].float()], dim=1)


def to_host(rows: list[Tensor]) -> FloatArray:
    """Rows of shape [.., 4], joined, on the host; waits for the device."""
    array: FloatArray = torch.cat(rows).cpu().numpy() if rows else np.zeros((0, NUM_SIGNALS + 1), np.float32)
    return array
