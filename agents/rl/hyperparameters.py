# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters of the learners, checked; apart from them so that a config error needs no PyTorch to be told."""

from dataclasses import dataclass

from speckv.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """What every learner has.

    Attributes:
        total_steps: Environment steps to learn from, over all environments together.
        num_steps: Steps of each environment between updates.
        learning_rate: At the start; it falls linearly to zero.
        discount: Of future rewards, in [0, 1]; 0 makes a contextual bandit of it, right for myopic rewards.
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
        self.check()

    def check(self) -> None:
        """Checks ranges; a learner with more settings checks those as well."""
        _require_counts(self, "total_steps", "num_envs", "num_steps", "normalisation_steps")
        _require_shares(self, "discount")
        _require_above_zero(self, "learning_rate")
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"Expected agent.hidden to list at least one layer of 1 unit or more, got {self.hidden}.")

    def check_environment(self, decides: str) -> None:
        """Passes if the learner can decide this way: "per_step" or "per_token"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPolicySettings(LearnerSettings):
    """What learners have that use each rollout once and drop it."""

    gae_lambda: float
    entropy_coef: float

    def check(self) -> None:
        """See `LearnerSettings.check`."""
        LearnerSettings.check(self)
        _require_shares(self, "gae_lambda")
        _require_from_zero(self, "entropy_coef")
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

    def check(self) -> None:
        """See `LearnerSettings.check`."""
        OnPolicySettings.check(self)
        _require_counts(self, "batch_size", "num_epochs")
        _require_above_zero(self, "clip_range")
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

    def check(self) -> None:
        """See `LearnerSettings.check`."""
        PPOSettings.check(self)
        _require_counts(self, "lstm_hidden")

    def check_environment(self, decides: str) -> None:
        """See `LearnerSettings.check_environment`."""
        if decides != "per_step":
            raise ConfigError(
                f"Expected env.decides per_step for a policy with a memory, got {decides}: it takes one state a decode "
                "step from the request before. Say env=replay, or choose another agent, such as ppo."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DQNSettings(LearnerSettings):
    """Hyper-parameters of DQN.

    Attributes:
        gradient_steps: Minibatches between two collections of `num_envs * num_steps` steps.
        buffer_size: Steps that are remembered, over all environments together.
        learning_starts: Steps of a random policy before the first update.
        target_interval: Steps between copies into the target network.
        return_steps: Steps whose rewards are added up before the target network's value stands for the rest.
        exploration_fraction: Share of the run over which exploration falls from 1 to its last value.
        final_exploration: Share of random actions from then on.
    """

    gradient_steps: int
    batch_size: int
    buffer_size: int
    learning_starts: int
    target_interval: int
    return_steps: int
    exploration_fraction: float
    final_exploration: float

    def check(self) -> None:
        """See `LearnerSettings.check`."""
        LearnerSettings.check(self)
        _require_counts(self, "gradient_steps", "batch_size", "return_steps")
        _require_shares(self, "exploration_fraction", "final_exploration")
        _require_above_zero(self, "exploration_fraction")
        _require_from_zero(self, "learning_starts")
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

    def check(self) -> None:
        """See `LearnerSettings.check`."""
        DQNSettings.check(self)
        _require_counts(self, "num_quantiles")


def _require_counts(settings: LearnerSettings, *names: str) -> None:
    for name in names:
        if getattr(settings, name) < 1:
            raise ConfigError(f"Expected agent.{name} 1 or more, got {getattr(settings, name)}.")


def _require_shares(settings: LearnerSettings, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(settings, name) <= 1:
            raise ConfigError(f"Expected agent.{name} in [0, 1], got {getattr(settings, name)}.")


def _require_above_zero(settings: LearnerSettings, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) > 0:
            raise ConfigError(f"Expected agent.{name} above 0, got {getattr(settings, name)}.")


def _require_from_zero(settings: LearnerSettings, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) >= 0:
            raise ConfigError(f"Expected agent.{name} 0 or more, got {getattr(settings, name)}.")
