# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters of the SpecKV paper's controller, checked."""

from dataclasses import dataclass

from agents.survival.settings import check_fit_options
from speckv.errors import ConfigError
from speckv.types import GAMMA_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecKVMlpSettings:
    """Hyper-parameters.

    Attributes:
        gammas: On offer, ascending; the paper's by default.
        hidden: Units of each hidden layer; the paper's by default.
        epochs: Passes over the samples.
        batch_size: Samples in a minibatch.
        learning_rate: Of Adam at the start; it falls to zero along a cosine.
        weight_decay: Of AdamW.
    """

    gammas: tuple[int, ...] = (2, 4, 6, 8)
    hidden: tuple[int, ...] = (16,)
    epochs: int = 12
    batch_size: int = 4096
    learning_rate: float = 1e-2
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        """Checks ranges."""
        check_fit_options(self)
        ascending = list(self.gammas) == sorted(set(self.gammas))
        if not self.gammas or not ascending or self.gammas[0] < 0 or not 1 <= self.gammas[-1] <= GAMMA_MAX:
            raise ConfigError(
                f"Expected agent.gammas to ascend within 0 to {GAMMA_MAX}, with one above 0, got {list(self.gammas)}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecKVMlpCostSettings(SpecKVMlpSettings):
    """The same, with every gamma on offer by default: with time in the rule, the largest is no foregone choice."""

    gammas: tuple[int, ...] = tuple(range(GAMMA_MAX + 1))
