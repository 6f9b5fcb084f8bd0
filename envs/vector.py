# SPDX-License-Identifier: Apache-2.0
"""The environment of many requests at once, in NumPy alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.core import STEP_INFO, Core, RewardOptions, Settings
from envs.stopping_core import StoppingCore
from speckv.cost import CostTable
from speckv.errors import ConfigError
from speckv.replay import ReplayStep
from speckv.traces import TraceSet
from speckv.types import FloatArray, IntArray

BoolArray = NDArray[np.bool_]


class ReplayVectorEnv(VectorEnv[FloatArray, IntArray, NDArray[Any]]):
    """Many replayed requests at once: what the vector forms of all environments share.

    Environment `k` behaves as the scalar one that was reset with `seed + k`, step by step. An environment whose
    episode ends starts the next one in the same step (`AutoresetMode.SAME_STEP`): the observation is then the new
    episode's first, and `infos` holds `final_obs` and `final_info`, the latter with the sums under `decode`.

    `infos` follows Gymnasium's vector format: arrays over environments with a mask under the name's underscored form.
    `num_drafted`, `num_accepted`, `num_emitted` and `seconds` are given for every environment, those that ended
    included; `sequence`, `prompt_id`, `task` and `compression` where an episode began.
    """

    core_class: type[Core] = Core
    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (declared so by Gymnasium)

    def __init__(
        self,
        num_envs: int = 1,
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
            num_envs: Number of environments.
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
            render_mode: None; only the scalar environment renders.

        Raises:
            ConfigError: if a setting is out of range.
            TraceError: if there is no such trace, or nothing in it matches.
            CostTableError: if there is no such table, or it lacks a compression.
        """
        if num_envs < 1:
            raise ConfigError(f"Expected at least one environment, got num_envs={num_envs}.")
        if render_mode is not None:
            raise ConfigError(f"Expected render_mode None, got {render_mode!r}. Render a scalar environment instead.")
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
        self.core = self.core_class(settings, num_envs)
        self.num_envs = num_envs
        self.render_mode = None
        self.single_observation_space = self.core.observation_space()
        self.single_action_space = self.core.action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators: list[np.random.Generator] = []
        self._everyone = np.arange(num_envs)

    @property
    def traces(self) -> TraceSet:
        """The selection that is replayed."""
        return self.core.traces

    def set_lambda(self, values: Mapping[str, float]) -> None:
        """Sets the reward's lambda: compression -> tokens a second."""
        self.core.reward.set_lambda(values)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Starts an episode in every environment.

        Args:
            seed: Environment k gets `seed + k`, or the k-th of a sequence; None goes on with the present generators.
            options: {"sequence": index, or one index an environment} picks the sequences.
        """
        self._seed(seed)
        observations = self.core.start(self._everyone, self._generators, options)
        return observations, self._masked(self._everyone, self.core.sequence_info(self._everyone))

    def _seed(self, seed: int | Sequence[int | None] | None) -> None:
        if seed is None and self._generators:
            return
        if isinstance(seed, int | np.integer):
            seed = [int(seed) + k for k in range(self.num_envs)]
        seeds = [None] * self.num_envs if seed is None else list(seed)
        if len(seeds) != self.num_envs:
            raise ConfigError(f"Expected {self.num_envs} seeds, one an environment, got {len(seeds)}.")
        old: Sequence[np.random.Generator | None] = self._generators or [None] * self.num_envs
        self._generators = [
            generator if value is None and generator is not None else seeding.np_random(value)[0]
            for value, generator in zip(seeds, old, strict=True)
        ]

    def step(self, actions: IntArray) -> tuple[FloatArray, NDArray[np.float64], BoolArray, BoolArray, dict[str, Any]]:
        """Makes one decode step in every environment and starts the next episode where one has ended."""
        if not self._generators:
            raise ConfigError("Expected reset() before the first step.")
        step, rewards = self.core.step(actions)
        observations = self.core.observe()
        infos: dict[str, Any] = {}
        for name in STEP_INFO:
            infos[name] = getattr(step, name)
            infos[f"_{name}"] = np.ones(self.num_envs, np.bool_)
        rows = np.flatnonzero(step.terminated | step.truncated)
        if len(rows):
            self._finish(rows, step, observations, infos)
        return observations, rewards, step.terminated, step.truncated, infos

    def get_state(self) -> tuple[dict[str, NDArray[Any]], list[dict[str, Any]]]:
        """Copies out everything that the future depends on but recordings and settings; call it after a reset.

        Returns:
            Arrays by name, and one generator state an environment, plain data that JSON can hold.
        """
        return self.core.get_state(), [dict(g.bit_generator.state) for g in self._generators]

    def set_state(self, arrays: Mapping[str, NDArray[Any]], generators: Sequence[Mapping[str, Any]]) -> None:
        """Puts a copied state back into an environment with the same recordings, settings and number of environments.

        Raises:
            ConfigError: if the number differs.
        """
        if len(generators) != self.num_envs or arrays["sequence"].shape != (self.num_envs,):
            raise ConfigError(f"Expected the state of {self.num_envs} environments, got {len(generators)}.")
        self._seed(0)
        self.core.set_state(arrays, self._generators)
        # Last, because starting episodes under "rejection" draws from the generators.
        for generator, state in zip(self._generators, generators, strict=True):
            generator.bit_generator.state = dict(state)

    def _finish(self, rows: IntArray, step: ReplayStep, observations: FloatArray, infos: dict[str, Any]) -> None:
        """Reports the ended episodes and starts new ones, in place."""
        final = np.full(self.num_envs, None, object)
        for row, observation in zip(rows, observations[rows], strict=True):
            final[row] = observation
        sums = self._masked(rows, self.core.episode_sums(rows))
        of_step = self._masked(rows, {name: getattr(step, name)[rows] for name in STEP_INFO})
        ended = of_step["_seconds"]
        infos |= {
            "final_obs": final,
            "_final_obs": ended.copy(),
            "final_info": of_step | {"decode": sums, "_decode": ended.copy()},
            "_final_info": ended.copy(),
        }
        observations[rows] = self.core.start(rows, [self._generators[row] for row in rows])
        infos |= self._masked(rows, self.core.sequence_info(rows))

    def _masked(self, rows: IntArray, values: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Spreads values of some environments over all of them, each with its mask."""
        infos: dict[str, Any] = {}
        for name, value in values.items():
            spread = (
                np.full(self.num_envs, None, object) if value.dtype == object else np.zeros(self.num_envs, value.dtype)
            )
            spread[rows] = value
            mask = np.zeros(self.num_envs, np.bool_)
            mask[rows] = True
            infos[name], infos[f"_{name}"] = spread, mask
        return infos


class GammaSelectionVectorEnv(ReplayVectorEnv):
    """Steps many `GammaSelectionEnv` at once; see there for actions, observations, rewards and episode ends."""


class DraftStoppingVectorEnv(ReplayVectorEnv):
    """Steps many `DraftStoppingEnv` at once; see there for actions, observations, rewards and episode ends."""

    core_class = StoppingCore
