# SPDX-License-Identifier: Apache-2.0
"""The controller that every engine has: one number."""

import numpy as np

from speckv.errors import ConfigError
from speckv.types import FloatArray, IntArray, StepOutcome


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

    def learn(self, outcome: StepOutcome) -> None:
        """Learns nothing."""
