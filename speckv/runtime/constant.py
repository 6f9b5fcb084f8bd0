# SPDX-License-Identifier: Apache-2.0
"""The controllers that every engine has: one number, or one number for each compression."""

from collections.abc import Mapping

import numpy as np

from speckv.errors import ConfigError, nearest
from speckv.observation import SCHEMA
from speckv.types import BITS_PER_WEIGHT, FloatArray, IntArray, StepOutcome

_BITS = SCHEMA.index("bits_per_weight")
_FULL_WIDTH = BITS_PER_WEIGHT["fp16"]


class ConstantGamma:
    """Always drafts `gamma` tokens; 0 is plain decoding.

    Args:
        gamma: In tokens, at least 0.
        name: Shown in tables; `fixed-<gamma>` or `autoregressive` by default.

    Raises:
        ConfigError: if gamma is negative.
    """

    charges_decision = False

    def __init__(self, gamma: int, *, name: str | None = None) -> None:
        if gamma < 0:
            raise ConfigError(f"Expected gamma of at least 0 tokens, got {gamma}.")
        self.gamma = gamma
        self.name = name or (f"fixed-{gamma}" if gamma else "autoregressive")

    def reset(self) -> None:
        """Nothing to forget."""

    def act(self, observation: FloatArray) -> int:  # noqa: ARG002 - a constant looks at nothing
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
    """Plays one constant for each compression, which it reads off the observation's bits per weight.

    Args:
        gammas: Compression -> gamma, in tokens, at least 0.
        name: Shown in tables.

    Raises:
        ConfigError: for an unknown compression, a negative gamma, or none at all.
    """

    charges_decision = False

    def __init__(self, gammas: Mapping[str, int], *, name: str = "fixed-per-compression") -> None:
        if not gammas:
            raise ConfigError("Expected a gamma for at least one compression, got none.")
        known = list(BITS_PER_WEIGHT)
        for compression, gamma in gammas.items():
            if compression not in BITS_PER_WEIGHT:
                raise ConfigError(
                    f"Expected a compression of {known}, got {compression!r}.{nearest(compression, known)}"
                )
            if gamma < 0:
                raise ConfigError(f"Expected gamma of {compression} of at least 0 tokens, got {gamma}.")
        self.name = name
        self.gammas = dict(gammas)
        self._bits = np.array([BITS_PER_WEIGHT[c] / _FULL_WIDTH for c in gammas], np.float32)
        self._lookup = np.array(list(gammas.values()), np.int64)
        self._known: dict[float, int] = {}

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
