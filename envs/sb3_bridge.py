# SPDX-License-Identifier: Apache-2.0
"""A Gymnasium vector environment as a `VecEnv` of Stable-Baselines3.

Neither project has such an adapter. Stable-Baselines3 resets in the same step, reads the last observation from
`terminal_observation`, and bootstraps the value of an episode's end only where `TimeLimit.truncated` is set.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from speckv.envs.vector import ReplayVectorEnv
from speckv.errors import ConfigError
from speckv.types import FloatArray


class SB3VecEnv(VecEnv):
    """Adapts a `ReplayVectorEnv`, which must reset in the same step (a ConfigError otherwise).

    Where an episode ends, its info holds `terminal_observation`, `TimeLimit.truncated`, and `episode` with its return
    `r`, its number of steps `l` and the sums of the environment's `decode`; it is empty otherwise.
    """

    def __init__(self, envs: ReplayVectorEnv) -> None:
        mode = envs.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ConfigError(f"Expected a vector environment that resets in the same step, got autoreset mode {mode}.")
        self.envs = envs
        self.last_infos: dict[str, Any] = {}
        self._actions: NDArray[np.int64] = np.zeros(envs.num_envs, np.int64)
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> FloatArray:
        """Starts an episode in every environment, with the seeds and options set before."""
        seeds = None if all(seed is None for seed in self._seeds) else self._seeds
        options = {key: [each[key] for each in self._options] for key in self._options[0]} if self._options else None
        observations, self.last_infos = self.envs.reset(seed=seeds, options=options)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Takes the actions of the next step."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Makes the step; rewards come as float32, as from Stable-Baselines3's own vector environments."""
        observations, rewards, terminated, truncated, infos = self.envs.step(self._actions)
        self.last_infos = infos
        dones = terminated | truncated
        listed: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if "final_obs" in infos:
            sums = {name: value for name, value in infos["final_info"]["decode"].items() if not name.startswith("_")}
            for row in np.flatnonzero(dones).tolist():
                episode = {name: value[row].item() for name, value in sums.items()}
                listed[row] = {
                    "terminal_observation": infos["final_obs"][row],
                    "TimeLimit.truncated": bool(truncated[row]),
                    "episode": {"r": episode["return"], "l": episode["num_steps"], **episode},
                }
        return observations, rewards.astype(np.float32), dones, listed

    def close(self) -> None:
        """Closes the environment."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Returns an attribute of the environment, once an index: they all share it."""
        return [getattr(self.envs, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute of the environment; a ConfigError unless `indices` are all: they share it."""
        self._require_all(indices, f"set {attr_name!r}")
        setattr(self.envs, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Calls a method once and returns its result once an index; a ConfigError unless `indices` are all."""
        self._require_all(indices, f"call {method_name!r}")
        return [getattr(self.envs, method_name)(*method_args, **method_kwargs)] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:  # noqa: ARG002
        """Returns False, once an index: there are no wrappers inside."""
        return [False] * len(self._rows(indices))

    def _rows(self, indices: VecEnvIndices) -> Sequence[int]:
        return list(self._get_indices(indices)) if indices is not None else range(self.num_envs)

    def _require_all(self, indices: VecEnvIndices, what: str) -> None:
        rows: Iterable[int] = self._rows(indices)
        if sorted(rows) != list(range(self.num_envs)):
            raise ConfigError(f"Expected to {what} in all environments at once, got indices {indices}: they share it.")
