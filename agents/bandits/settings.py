# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters of the bandits, checked."""

from dataclasses import dataclass

from speckv.errors import ConfigError

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
