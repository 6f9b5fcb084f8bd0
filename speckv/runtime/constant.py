# SPDX-License-Identifier: Apache-2.0
"""Controllers that are a few numbers: one gamma, one a compression, or one for each range of recent acceptance."""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import numpy as np

from speckv.errors import ConfigError, nearest
from speckv.observation import SCHEMA
from speckv.runtime.state import ControllerState, tokens
from speckv.types import BITS_PER_WEIGHT, FloatArray, IntArray, StepOutcome

_BITS, _RATE = SCHEMA.index("bits_per_weight"), SCHEMA.index("acceptance_ema")
_FULL_WIDTH = BITS_PER_WEIGHT["fp16"]


class ConstantGamma:
    """Always drafts `gamma` tokens; 0 is plain decoding."""

    kind = "constant"
    charges_decision = False

    def __init__(self, gamma: int, *, name: str | None = None) -> None:
        if gamma < 0:
            raise ConfigError(f"Expected gamma of at least 0 tokens, got {gamma}.")
        self.gamma = gamma
        self.name = name or (f"fixed-{gamma}" if gamma else "autoregressive")

    def state(self) -> ControllerState:
        """Returns gamma."""
        return ControllerState.of({"gamma": self.gamma})

    @classmethod
    def from_state(cls, state: ControllerState) -> "ConstantGamma":
        """Makes the stored controller."""
        return ConstantGamma(tokens(state.settings["gamma"]))

    def reset(self) -> None:
        """Nothing to forget."""

    def act(self, observation: FloatArray) -> int:  # noqa: ARG002 - the protocol's signature
        """Returns gamma."""
        return self.gamma

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns gamma for every row."""
        return np.full(len(observations), self.gamma, np.int64)

    def never_drafts(self, compression: str) -> bool:  # noqa: ARG002 - the same at all
        """Whether every decision is 0 at a compression."""
        return self.gamma == 0

    def learn(self, outcome: StepOutcome) -> None:
        """Learns nothing."""


class ConstantPerCompression:
    """Plays one constant for each compression, which it reads off the observation's bits per weight."""

    kind = "table"
    charges_decision = False

    def __init__(self, gammas: Mapping[str, int], *, name: str = "fixed-per-compression") -> None:
        _require_compressions(gammas)
        for compression, gamma in gammas.items():
            if gamma < 0:
                raise ConfigError(f"Expected gamma of {compression} of at least 0 tokens, got {gamma}.")
        self.name = name
        self.gammas = dict(gammas)
        self._bits = np.array([BITS_PER_WEIGHT[c] / _FULL_WIDTH for c in gammas], np.float32)
        self._lookup = np.array(list(gammas.values()), np.int64)
        self._known: dict[float, int] = {}

    def state(self) -> ControllerState:
        """Returns the constants."""
        return ControllerState.of({"gammas": self.gammas})

    @classmethod
    def from_state(cls, state: ControllerState) -> "ConstantPerCompression":
        """Makes the stored controller."""
        return ConstantPerCompression({str(c): tokens(g) for c, g in state.settings["gammas"].items()})

    def reset(self) -> None:
        """Nothing to forget."""

    def act(self, observation: FloatArray) -> int:
        """Returns the constant of the compression nearest in bits per weight."""
        bits = observation.item(_BITS)
        chosen = self._known.get(bits)
        if chosen is None:
            chosen = self._known[bits] = int(self.act_batch(observation[np.newaxis])[0])
        return chosen

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the constant of each row's compression."""
        return self._nearest(observations[:, _BITS])

    def never_drafts(self, compression: str) -> bool:
        """Whether every decision is 0 at a compression; the one nearest in bits per weight decides."""
        return bool(self._nearest(np.array([BITS_PER_WEIGHT[compression] / _FULL_WIDTH], np.float32))[0] == 0)

    def _nearest(self, bits: FloatArray) -> IntArray:
        chosen: IntArray = self._lookup[np.abs(bits[:, np.newaxis] - self._bits).argmin(axis=1)]
        return chosen

    def learn(self, outcome: StepOutcome) -> None:
        """Learns nothing."""


class AcceptanceTable:
    """Looks gamma up by the request's decayed acceptance rate and the target's compression.

    Libraries that show no signal of a model show how many tokens they accepted, which is all that this needs.

    Args:
        edges: Ascending rates, in (0, 1), between the ranges; a rate on an edge belongs to the range above.
    """

    kind = "acceptance_table"
    charges_decision = True

    def __init__(
        self, edges: Sequence[float], gammas: Mapping[str, Sequence[int]], *, name: str = "acceptance-table"
    ) -> None:
        if any(not 0 < edge < 1 for edge in edges) or any(a >= b for a, b in pairwise(edges)):
            raise ConfigError(f"Expected ascending acceptance rates between 0 and 1, got {list(edges)}.")
        _require_compressions(gammas)
        for row in gammas.values():
            if len(row) != len(edges) + 1 or min(row) < 0:
                raise ConfigError(f"Expected {len(edges) + 1} gammas of at least 0 tokens, got {list(row)}.")
        self.name = name
        self.edges = tuple(float(np.float32(edge)) for edge in edges)
        self.gammas = {compression: tuple(row) for compression, row in gammas.items()}
        self._bits = [float(np.float32(BITS_PER_WEIGHT[c] / _FULL_WIDTH)) for c in gammas]
        self._rows = list(self.gammas.values())
        self._row_of: dict[float, tuple[int, ...]] = {}

    def state(self) -> ControllerState:
        """Returns the table."""
        gammas = {compression: list(row) for compression, row in self.gammas.items()}
        return ControllerState.of({"edges": list(self.edges), "gammas": gammas})

    @classmethod
    def from_state(cls, state: ControllerState) -> "AcceptanceTable":
        """Makes the stored controller."""
        gammas = {str(c): tuple(map(tokens, row)) for c, row in state.settings["gammas"].items()}
        return AcceptanceTable([float(edge) for edge in state.settings["edges"]], gammas)

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


def _require_compressions(names: Collection[str]) -> None:
    if not names:
        raise ConfigError("Expected a gamma for at least one compression, got none.")
    known = list(BITS_PER_WEIGHT)
    for name in names:
        if name not in BITS_PER_WEIGHT:
            raise ConfigError(f"Expected a compression of {known}, got {name!r}.{nearest(name, known)}")
