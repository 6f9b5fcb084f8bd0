# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters of the survival models, checked."""

from dataclasses import dataclass

from speckv.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivalSettings:
    """Hyper-parameters.

    Attributes:
        hidden: Units of each hidden layer.
        epochs: Passes over the samples.
        batch_size: Samples in a minibatch.
        learning_rate: Of Adam at the start; it falls to zero along a cosine.
        weight_decay: Of AdamW.
        rounds: Fits; all but the first add the states that the controller of the fit before meets.
    """

    hidden: tuple[int, ...] = (64, 64)
    epochs: int = 12
    batch_size: int = 4096
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    rounds: int = 2

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"Expected agent.hidden to list at least one layer of 1 unit or more, got {self.hidden}.")
        for name in ("epochs", "batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Expected agent.{name} 1 or more, got {getattr(self, name)}.")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ConfigError("Expected agent.learning_rate above 0 and agent.weight_decay 0 or more.")
