# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters of PPO, checked; apart from the learner so that a config error needs no PyTorch to be told."""

from dataclasses import dataclass

from speckv.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOSettings:
    """Hyper-parameters of PPO.

    Attributes:
        total_steps: Environment steps to learn from, over all environments together.
        num_envs: Environments stepped at once.
        num_steps: Steps of each environment between updates.
        batch_size: Steps in a minibatch.
        num_epochs: Passes over a rollout.
        learning_rate: At the start; it falls linearly to zero.
        discount: Of future rewards, in [0, 1]; 0 makes a contextual bandit of it, right for myopic rewards.
        gae_lambda: Of generalised advantage estimation.
        clip_range: Of the probability ratio.
        entropy_coef: Weight of the entropy bonus.
        hidden: Units of each hidden layer, for policy and value alike.
        normalisation_steps: Steps of a random policy that the observations' mean and deviation come from.
    """

    total_steps: int = 1_000_000
    num_envs: int = 256
    num_steps: int = 32
    batch_size: int = 2048
    num_epochs: int = 4
    learning_rate: float = 1e-3
    discount: float = 0.0
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    entropy_coef: float = 0.05
    hidden: tuple[int, ...] = (64, 64)
    normalisation_steps: int = 20_000

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("total_steps", "num_envs", "num_steps", "batch_size", "num_epochs", "normalisation_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Expected agent.{name} 1 or more, got {getattr(self, name)}.")
        for name in ("discount", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"Expected agent.{name} in [0, 1], got {getattr(self, name)}.")
        if self.learning_rate <= 0 or self.clip_range <= 0 or self.entropy_coef < 0:
            raise ConfigError(
                "Expected agent.learning_rate and agent.clip_range above 0 and agent.entropy_coef 0 or more."
            )
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"Expected agent.hidden to list at least one layer of 1 unit or more, got {self.hidden}.")
        rollout = self.num_envs * self.num_steps
        if rollout < 2 or self.batch_size > rollout or rollout % self.batch_size:
            raise ConfigError(
                f"Expected agent.batch_size to divide a rollout of num_envs * num_steps = {rollout} steps, "
                f"got {self.batch_size}."
            )
