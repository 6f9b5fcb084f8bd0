# SPDX-License-Identifier: Apache-2.0
"""One replayed request: what the scalar forms of all environments share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from envs.core import STEP_INFO, Core, RewardOptions, Settings
from speckv.cost import CostTable
from speckv.errors import ConfigError
from speckv.replay import ReplayStep
from speckv.traces import TraceSet
from speckv.types import FloatArray

_SLOT = np.zeros(1, np.int64)


class ReplayEnv(gym.Env[FloatArray, np.int64]):
    """One recorded request under an action at a time; subclasses say what an action is."""

    core_class: type[Core] = Core
    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 (declared so by Gymnasium)

    def __init__(
        self,
        *,
        traces: str | Path | TraceSet = "qwen2.5-coder-greedy",
        cost: str | Path | CostTable = "cpu-2core",
        split: str | None = "train",
        compressions: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        gamma_max: int = 16,
        reward: str | None = None,
        reward_options: RewardOptions | None = None,
        reward_scale: float = 1.0,
        budget: int | None = None,
        acceptance: str = "recorded",
        render_mode: str | None = None,
    ) -> None:
        """Loads the recordings and the times.

        Args:
            traces: A shipped trace's name, a file, or a trace set.
            cost: A shipped cost table's name, a file, or a table.
            split: "train", "test", or None for both.
            compressions: Which to keep, all if None.
            tasks: Which to keep, all if None.
            gamma_max: Greatest action, at most the recording's.
            reward: Name of a reward; by default the environment's own.
            reward_options: Its options.
            reward_scale: Multiplies every reward.
            budget: Token budget, at most the recording's, which is the default.
            acceptance: "recorded", or "rejection" to draw acceptances anew for each episode of a sampled text.
            render_mode: "ansi" renders the last step as a line of text.

        Raises:
            ConfigError: if a setting is out of range.
            TraceError: if there is no such trace, or nothing in it matches.
            CostTableError: if there is no such table, or it lacks a compression.
        """
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ConfigError(f"Expected a render mode among {self.metadata['render_modes']}, got {render_mode!r}.")
        settings = Settings(
            traces=traces,
            cost=cost,
            split=split,
            compressions=compressions,
            tasks=tasks,
            gamma_max=gamma_max,
            reward=reward,
            reward_options=reward_options,
            reward_scale=reward_scale,
            budget=budget,
            acceptance=acceptance,
        )
        self.core = self.core_class(settings, 1)
        self.render_mode = render_mode
        self.observation_space = self.core.observation_space()
        self.action_space = self.core.action_space()
        self._last: ReplayStep | None = None

    @property
    def traces(self) -> TraceSet:
        """The selection that is replayed."""
        return self.core.traces

    def set_lambda(self, values: Mapping[str, float]) -> None:
        """Sets the reward's lambda: compression -> tokens a second."""
        self.core.reward.set_lambda(values)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: Of the environment's generator; None goes on with the present one.
            options: {"sequence": index} picks the sequence.
        """
        super().reset(seed=seed)
        observation = self.core.start(_SLOT, [self.np_random], options)[0]
        self._last = None
        return observation, self._scalars(self.core.sequence_info(_SLOT))

    def step(self, action: np.int64) -> tuple[FloatArray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Carries out an action; see the environment for what it means."""
        if not self.core.batch.running[0]:
            raise ResetNeeded("Expected a running episode: call reset() first, and again after an episode has ended.")
        if not self.action_space.contains(action):
            raise ConfigError(f"Expected an action in {self.action_space}, got {action!r}.")
        step, rewards = self.core.step([action])
        self._last = step
        terminated, truncated = bool(step.terminated[0]), bool(step.truncated[0])
        info = self._scalars({name: getattr(step, name) for name in STEP_INFO})
        if terminated or truncated:
            info["decode"] = self._scalars(self.core.episode_sums(_SLOT))
        return self.core.observe()[0], float(rewards[0]), terminated, truncated, info

    def render(self) -> str | None:
        """Returns one line on the last step, if `render_mode` is "ansi"."""
        if self.render_mode is None:
            gym.logger.warn('Expected render_mode="ansi" at construction, got none: nothing is rendered.')
            return None
        batch = self.core.batch
        sequence = self.core.traces.sequences[int(batch.sequence[0])]
        where = f"{sequence.compression} {sequence.prompt_id}: {batch.history.emitted[0]}/{batch.budget} tokens"
        if self._last is None:
            return where
        return f"{where}, {self.core.describe(self._last)} in {self._last.seconds[0] * 1e3:.1f} ms"

    @staticmethod
    def _scalars(values: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        return {name: value.tolist()[0] for name, value in values.items()}
