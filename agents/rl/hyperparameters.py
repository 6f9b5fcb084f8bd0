# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters of reinforcement learners, checked without importing PyTorch."""

from dataclasses import dataclass

from speckv.agents.building import COUNT, FROM_ZERO, SHARE, require_above_zero, require_layers, require_ranges
from speckv.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """Hyper-parameters of every learner.

    Attributes:
        total_steps: Environment steps, over all environments together.
        num_steps: Steps of each environment between updates.
        learning_rate: At the start; it falls linearly to zero.
        discount: Of future rewards; 0 makes a contextual bandit, right for myopic rewards.
        normalisation_steps: Steps of a random policy that the observations' mean and deviation come from.
    """

    total_steps: int
    num_envs: int
    num_steps: int
    learning_rate: float
    discount: float
    hidden: tuple[int, ...]
    normalisation_steps: int

    def __post_init__(self) -> None:
        """Checks ranges."""
        require_ranges(self, total_steps=COUNT, num_envs=COUNT, num_steps=COUNT, normalisation_steps=COUNT)
        require_ranges(self, discount=SHARE)
        require_above_zero(self, "learning_rate")
        require_layers(self)

    def check_environment(self, decides: str) -> None:
        """Passes if the learner can decide this way: "per_step" or "per_token"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPolicySettings(LearnerSettings):
    """Hyper-parameters of learners that use each rollout once."""

    gae_lambda: float
    entropy_coef: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        LearnerSettings.__post_init__(self)  # a plain super() breaks in dataclasses with slots
        require_ranges(self, gae_lambda=SHARE)
        require_ranges(self, entropy_coef=FROM_ZERO)
        if self.num_envs * self.num_steps < 2:
            raise ConfigError("Expected agent.num_envs * agent.num_steps to make a rollout of at least 2 steps, got 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class A2CSettings(OnPolicySettings):
    """Hyper-parameters of A2C: one update a rollout, on all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOSettings(OnPolicySettings):
    """Hyper-parameters of PPO."""

    batch_size: int
    num_epochs: int
    clip_range: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        OnPolicySettings.__post_init__(self)
        require_ranges(self, batch_size=COUNT, num_epochs=COUNT)
        require_above_zero(self, "clip_range")
        rollout = self.num_envs * self.num_steps
        if self.batch_size > rollout or rollout % self.batch_size:
            raise ConfigError(
                f"Expected agent.batch_size to divide a rollout of num_envs * num_steps = {rollout} steps, "
                f"got {self.batch_size}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentPPOSettings(PPOSettings):
    """Hyper-parameters of PPO with a memory: the policy is an LSTM, the value is not."""

    lstm_hidden: int

    def __post_init__(self) -> None:
        """Checks ranges."""
        PPOSettings.__post_init__(self)
        require_ranges(self, lstm_hidden=COUNT)

    def check_environment(self, decides: str) -> None:
        """Refuses to decide per token: the LSTM takes one state a decode step."""
        if decides != "per_step":
            raise ConfigError(
                f"Expected env.decides per_step for a recurrent policy, got {decides}. Set env=replay, or choose "
                "another agent, such as ppo."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DQNSettings(LearnerSettings):
    """Hyper-parameters of DQN.

    Attributes:
        gradient_steps: Minibatches between two collections of `num_envs * num_steps` steps.
        buffer_size: Steps, over all environments together.
        learning_starts: Steps of a random policy before the first update.
        target_interval: Steps between copies into the target network.
        return_steps: Steps of an n-step return.
        exploration_fraction: Share of the run over which exploration falls from 1 to `final_exploration`.
    """

    gradient_steps: int
    batch_size: int
    buffer_size: int
    learning_starts: int
    target_interval: int
    return_steps: int
    exploration_fraction: float
    final_exploration: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        LearnerSettings.__post_init__(self)
        require_ranges(self, gradient_steps=COUNT, batch_size=COUNT, return_steps=COUNT)
        require_ranges(self, exploration_fraction=SHARE, final_exploration=SHARE)
        require_above_zero(self, "exploration_fraction")
        require_ranges(self, learning_starts=FROM_ZERO)
        for name in ("buffer_size", "target_interval"):
            if getattr(self, name) < self.num_envs:
                raise ConfigError(
                    f"Expected agent.{name} of at least one step of each environment, {self.num_envs}, "
                    f"got {getattr(self, name)}."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class QRDQNSettings(DQNSettings):
    """Hyper-parameters of QR-DQN, which learns quantiles of the return and acts on their mean."""

    num_quantiles: int

    def __post_init__(self) -> None:
        """Checks ranges."""
        DQNSettings.__post_init__(self)
        require_ranges(self, num_quantiles=COUNT)
