# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters of the survival models, checked."""

from dataclasses import dataclass
from typing import Protocol

from speckv.errors import ConfigError


class FitOptions(Protocol):
    """What `fit_probabilities` needs to know; see `SurvivalSettings` for the meaning."""

    @property
    def hidden(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def epochs(self) -> int: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def learning_rate(self) -> float: ...  # noqa: D102
    @property
    def weight_decay(self) -> float: ...  # noqa: D102


def check_fit_options(options: FitOptions) -> None:
    """Passes if every option is in its range.

    Raises:
        ConfigError: naming the first that is not.
    """
    if not options.hidden or min(options.hidden) < 1:
        raise ConfigError(f"Expected agent.hidden to list at least one layer of 1 unit or more, got {options.hidden}.")
    for name in ("epochs", "batch_size"):
        if getattr(options, name) < 1:
            raise ConfigError(f"Expected agent.{name} 1 or more, got {getattr(options, name)}.")
    if options.learning_rate <= 0 or options.weight_decay < 0:
        raise ConfigError("Expected agent.learning_rate above 0 and agent.weight_decay 0 or more.")


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
        check_fit_options(self)
        if self.rounds < 1:
            raise ConfigError(f"Expected agent.rounds 1 or more, got {self.rounds}.")
