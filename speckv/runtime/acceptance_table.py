# SPDX-License-Identifier: Apache-2.0
"""A gamma for each range of recent acceptance: what a library can follow that shows no signal but how much it kept."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from speckv.errors import ConfigError, nearest
from speckv.observation import SCHEMA
from speckv.types import BITS_PER_WEIGHT, FloatArray, IntArray, StepOutcome

_RATE, _BITS = SCHEMA.index("acceptance_ema"), SCHEMA.index("bits_per_weight")
_FULL_WIDTH = BITS_PER_WEIGHT["fp16"]


class AcceptanceTable:
    """Looks gamma up by the request's decayed acceptance rate and the target's compression.

    Args:
        edges: Ascending rates, in (0, 1), that part the ranges; a rate on an edge belongs to the range above.
        gammas: Compression -> one gamma a range, in tokens; a range more than there are edges.
        name: Shown in tables.

    Raises:
        ConfigError: if edges or gammas do not fit each other, or a compression is unknown.
    """

    charges_decision = True

    def __init__(
        self, edges: Sequence[float], gammas: Mapping[str, Sequence[int]], *, name: str = "acceptance-table"
    ) -> None:
        if any(not 0 < edge < 1 for edge in edges) or any(a >= b for a, b in pairwise(edges)):
            raise ConfigError(f"Expected ascending acceptance rates between 0 and 1, got {list(edges)}.")
        known = list(BITS_PER_WEIGHT)
        for compression, row in gammas.items():
            if compression not in BITS_PER_WEIGHT:
                raise ConfigError(
                    f"Expected a compression of {known}, got {compression!r}.{nearest(compression, known)}"
                )
            if len(row) != len(edges) + 1 or min(row) < 0:
                raise ConfigError(f"Expected {len(edges) + 1} gammas of at least 0 tokens, got {list(row)}.")
        if not gammas:
            raise ConfigError("Expected gammas for at least one compression, got none.")
        self.name = name
        self.edges = tuple(float(np.float32(edge)) for edge in edges)
        self.gammas = {compression: tuple(row) for compression, row in gammas.items()}
        self._bits = [float(np.float32(BITS_PER_WEIGHT[c] / _FULL_WIDTH)) for c in gammas]
        self._rows = list(self.gammas.values())
        self._row_of: dict[float, tuple[int, ...]] = {}

    def reset(self) -> None:
        """Nothing to forget: the observation carries the history."""

    def act(self, observation: FloatArray) -> int:
        """Returns the gamma of the range that the request's acceptance is in."""
        bits = observation.item(_BITS)
        row = self._row_of.get(bits)
        if row is None:
            nearest_one = min(range(len(self._bits)), key=lambda k: abs(bits - self._bits[k]))
            row = self._row_of[bits] = self._rows[nearest_one]
        return row[bisect_right(self.edges, observation.item(_RATE))]

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the same for each row."""
        rows = np.abs(observations[:, _BITS, np.newaxis] - np.array(self._bits)).argmin(axis=1)
        ranges = np.searchsorted(np.array(self.edges), observations[:, _RATE], side="right")
        chosen: IntArray = np.array(self._rows, np.int64)[rows, ranges]
        return chosen

    def learn(self, outcome: StepOutcome) -> None:
        """Learns nothing."""
