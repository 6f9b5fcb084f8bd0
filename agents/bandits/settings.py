# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters of the bandits, checked."""

from dataclasses import dataclass, fields

from agents.survival.settings import SurvivalSettings
from speckv.errors import ConfigError
from speckv.types import GAMMA_MAX

ARMS = (0, 1, 2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmsSettings:
    """Of bandits that look at nothing.

    Attributes:
        arms: Speculation lengths to choose from.
    """

    arms: tuple[int, ...] = ARMS


@dataclass(frozen=True, slots=True, kw_only=True)
class UcbSettings:
    """Of upper confidence bounds.

    Attributes:
        arms: Speculation lengths to choose from.
        width: Multiplies the bonus; 1 is the theory's.
    """

    arms: tuple[int, ...] = ARMS
    width: float = 1.0

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.width < 0:
            raise ConfigError(f"Expected agent.width of at least 0, got {self.width}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSettings:
    """Of contextual bandits with linear models.

    Attributes:
        arms: Speculation lengths to choose from.
        width: Of the confidence bound, or of the draws.
        ridge: Prior precision of every weight.
        forget: Share of the past that each update keeps; below 1 for drifting streams.
        side_information: "none" learns from the arm played; "smaller" also from all smaller arms, whose outcome the
            step revealed; "naive" from larger arms too where a rejection revealed those, which is biased: a warning.
    """

    arms: tuple[int, ...] = ARMS
    width: float = 0.3
    ridge: float = 1.0
    forget: float = 1.0
    side_information: str = "smaller"

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.width < 0 or self.ridge <= 0 or not 0 < self.forget <= 1:
            raise ConfigError(
                f"Expected agent.width from 0 up, agent.ridge above 0, agent.forget in (0, 1], got {self}."
            )
        if self.side_information not in ("none", "smaller", "naive"):
            raise ConfigError(f"Expected agent.side_information none, smaller or naive, got {self.side_information!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class HazardSettings:
    """Of hazard Thompson sampling.

    Attributes:
        gamma_max: Most tokens of a draft.
        width: Of the draws.
        ridge: Prior precision of every weight.
        forget: Share of the past that each update keeps.
        probe: Chance of drafting two tokens where none looks best: plain steps reveal nothing.
    """

    gamma_max: int = 16
    width: float = 0.2
    ridge: float = 1.0
    forget: float = 1.0
    probe: float = 0.03

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 1 <= self.gamma_max <= 16 or self.width < 0 or self.ridge <= 0:
            raise ConfigError(
                f"Expected agent.gamma_max from 1 to 16, agent.width from 0 up and agent.ridge above 0, got {self}."
            )
        if not 0 < self.forget <= 1 or not 0 <= self.probe <= 1:
            raise ConfigError(f"Expected agent.forget in (0, 1] and agent.probe in [0, 1], got {self}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscountedHazardSettings(HazardSettings):
    """Of hazard Thompson sampling for drifting streams.

    Attributes:
        forget: A regression's memory is about 1 / (1 - forget) of its own updates.
    """

    forget: float = 0.999


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuralLinearSettings(LinearSettings):
    """Of NeuralLinear: those of the linear model, and those of the network behind its features.

    Attributes:
        hidden: Units of each hidden layer; the last one's are the features.
        epochs: As for `survival`, as is all below.
        batch_size: Samples in a minibatch.
        learning_rate: Of Adam at the start.
        weight_decay: Of AdamW.
        rounds: Fits.
    """

    hidden: tuple[int, ...] = (64, 32)
    epochs: int = 12
    batch_size: int = 4096
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    rounds: int = 2

    def __post_init__(self) -> None:
        """Checks ranges."""
        LinearSettings.__post_init__(self)  # a plain super() breaks in dataclasses with slots
        self.network()

    def network(self) -> SurvivalSettings:
        """Settings of the network alone."""
        return SurvivalSettings(**{f.name: getattr(self, f.name) for f in fields(SurvivalSettings)})


@dataclass(frozen=True, slots=True, kw_only=True)
class TapOutSettings:
    """Of TapOut.

    Attributes:
        gamma_max: Most tokens of a draft; large, because rules are to stop it.
        level: "request" follows one rule for a whole request, "step" chooses anew for every draft.
        width: Multiplies the bonus; 1 is the theory's.
        confidence: Max-confidence stops below this top-1 probability.
        entropy_rise: The entropy difference stops above this rise of the entropy's square root.
        margin: The margin stops below this.
    """

    gamma_max: int = 16
    level: str = "request"
    width: float = 1.0
    confidence: float = 0.8
    entropy_rise: float = 0.2
    margin: float = 0.2

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.level not in ("request", "step"):
            raise ConfigError(f"Expected agent.level request or step, got {self.level!r}.")
        if not 1 <= self.gamma_max <= GAMMA_MAX or self.width < 0 or self.entropy_rise < 0:
            raise ConfigError(
                f"Expected agent.gamma_max from 1 to {GAMMA_MAX}, agent.width and agent.entropy_rise from 0 up, "
                f"got {self}."
            )
        if not 0 <= self.confidence <= 1 or not 0 <= self.margin <= 1:
            raise ConfigError(f"Expected agent.confidence and agent.margin in [0, 1], got {self}.")
