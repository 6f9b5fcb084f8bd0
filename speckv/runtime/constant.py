# SPDX-License-Identifier: Apache-2.0
"""Controllers that are a few numbers: one gamma, one a compression, or one for each range of recent acceptance."""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from speckv.errors import ConfigError, nearest
from speckv.observation import SCHEMA
from speckv.runtime.state import ControllerState, tokens
from speckv.types import BITS_PER_WEIGHT, FloatArray, IntArray, StepOutcome

_BITS, _RATE = SCHEMA.index("bits_per_weight"), SCHEMA.index("acceptance_ema")
_FULL_WIDTH = BITS_PER_WEIGHT["fp16"]


class Memoryless:
    """Base of controllers that keep nothing between decisions."""

    def reset(self) -> None:
        """Nothing to forget."""

    def learn(self, outcome: StepOutcome) -> None:
        """Learns nothing."""


class NearestCompression:
    """Finds, among some compressions, the index of the one nearest in bits per weight."""

    def __init__(self, compressions: Iterable[str]) -> None:
        self._bits = np.array([BITS_PER_WEIGHT[name] / _FULL_WIDTH for name in compressions], np.float32)
        self._known: dict[float, int] = {}

    def of_each(self, observations: FloatArray) -> IntArray:
        """Shape [rows]; the index for each observation."""
        return self._nearest(observations[:, _BITS])

    def of_one(self, observation: FloatArray) -> int:
        """The index for one observation."""
        bits = observation.item(_BITS)
        found = self._known.get(bits)
        if found is None:
            found = self._known[bits] = int(self.of_each(observation[np.newaxis])[0])
        return found

    def of_name(self, compression: str) -> int:
        """The index for a compression, which need not be among them."""
        return int(self._nearest(np.array([BITS_PER_WEIGHT[compression] / _FULL_WIDTH], np.float32))[0])

    def _nearest(self, bits: FloatArray) -> IntArray:
        index: IntArray = np.abs(bits[:, np.newaxis] - self._bits).argmin(axis=1)
        return index


class ConstantGamma(Memoryless):
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

    def act(self, observation: FloatArray) -> int:  # noqa: ARG002 - the protocol's signature
        """Returns gamma."""
        return self.gamma

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns gamma for every row."""
        return np.full(len(observations), self.gamma, np.int64)

    def never_drafts(self, compression: str) -> bool:  # noqa: ARG002 - as above
        """Whether every decision is 0 at a compression."""
        return self.gamma == 0


class ConstantPerCompression(Memoryless):
    """Plays one constant for each compression; negative gammas and unknown compressions are refused."""

    kind = "table"
    charges_decision = False

    def __init__(self, gammas: Mapping[str, int], *, name: str = "fixed-per-compression") -> None:
        _require_compressions(gammas)
        for compression, gamma in gammas.items():
            if gamma < 0:
                raise ConfigError(f"Expected gamma of {compression} of at least 0 tokens, got {gamma}.")
        self.name = name
        self.gammas = dict(gammas)
        self._row = NearestCompression(gammas)
        self._lookup = np.array(list(gammas.values()), np.int64)

    def state(self) -> ControllerState:
        """Returns the constants."""
        return ControllerState.of({"gammas": self.gammas})

    @classmethod
    def from_state(cls, state: ControllerState) -> "ConstantPerCompression":
        """Makes the stored controller."""
        return ConstantPerCompression({str(c): tokens(g) for c, g in state.settings["gammas"].items()})

    def act(self, observation: FloatArray) -> int:
        """Returns the constant of the compression nearest in bits per weight."""
        return int(self._lookup[self._row.of_one(observation)])

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the constant of each row's compression."""
        chosen: IntArray = self._lookup[self._row.of_each(observations)]
        return chosen

    def never_drafts(self, compression: str) -> bool:
        """Whether every decision is 0 at a compression; the one nearest in bits per weight decides."""
        return bool(self._lookup[self._row.of_name(compression)] == 0)


class AcceptanceTable(Memoryless):
    """Looks gamma up by the request's decayed acceptance rate and the target's compression.

    `edges` are ascending rates, in (0, 1), between the ranges; a rate on an edge belongs to the range above.
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
        self._row = NearestCompression(gammas)
        self._rows = list(self.gammas.values())

    def state(self) -> ControllerState:
        """Returns the table."""
        gammas = {compression: list(row) for compression, row in self.gammas.items()}
        return ControllerState.of({"edges": list(self.edges), "gammas": gammas})

    @classmethod
    def from_state(cls, state: ControllerState) -> "AcceptanceTable":
        """Makes the stored controller."""
        gammas = {str(c): tuple(map(tokens, row)) for c, row in state.settings["gammas"].items()}
        return AcceptanceTable([float(edge) for edge in state.settings["edges"]], gammas)

    def act(self, observation: FloatArray) -> int:
        """Returns the gamma of the range that the request's acceptance is in."""
        row = self._rows[self._row.of_one(observation)]
        return row[bisect_right(self.edges, observation.item(_RATE))]

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the same for each row."""
        rows = self._row.of_each(observations)
        ranges = np.searchsorted(np.array(self.edges), observations[:, _RATE], side="right")
        chosen: IntArray = np.array(self._rows, np.int64)[rows, ranges]
        return chosen


def _require_compressions(names: Collection[str]) -> None:
    if not names:
        raise ConfigError("Expected a gamma for at least one compression, got none.")
    known = list(BITS_PER_WEIGHT)
    for name in names:
        if name not in BITS_PER_WEIGHT:
            raise ConfigError(f"Expected a compression of {known}, got {name!r}.{nearest(name, known)}")
