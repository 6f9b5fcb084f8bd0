# SPDX-License-Identifier: Apache-2.0
"""Many replayed requests at once, as one Gymnasium vector environment."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from speckv.envs.core import STEP_INFO, Core, ReplayEnvSettings
from speckv.errors import ConfigError, nearest
from speckv.replay import ReplayStep
from speckv.traces import TraceSet
from speckv.types import BoolArray, FloatArray, IntArray


class ReplayVectorEnv(VectorEnv[FloatArray, IntArray, NDArray[Any]]):
    """Many recorded requests at once; subclasses define the actions.

    Environment `k` equals the scalar one that was reset with `seed + k`, step by step. The next episode starts when
    `autoreset_mode` says, as in Gymnasium's `SyncVectorEnv`:

    - "SameStep" (default): in the step that ends one; the observation is the new episode's first, and `infos` holds
      `final_obs` and `final_info`, the latter with the sums under `decode`.
    - "NextStep": in the step after, which ignores that environment's action and has reward 0.
    - "Disabled": never; call `reset(options={"reset_mask": mask})` before the next step.

    In the last two, `infos` of the step that ends an episode holds `decode`.

    `infos` has Gymnasium's vector format: arrays over environments, each with a mask under its underscored name.
    `num_drafted`, `num_accepted`, `num_emitted` and `seconds` are given for every environment that made a step, those
    that ended included; `sequence`, `prompt_id`, `task` and `compression` where an episode began.
    """

    core_class: type[Core] = Core
    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (declared so by Gymnasium)

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        """Takes `ReplayEnvSettings` and an `AutoresetMode`, or its value; nothing is rendered."""
        if num_envs < 1:
            raise ConfigError(f"Expected at least one environment, got num_envs={num_envs}.")
        if render_mode is not None:
            raise ConfigError(f"Expected render_mode None, got {render_mode!r}. Render a scalar environment instead.")
        self.core = self.core_class(ReplayEnvSettings(**settings), num_envs)
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self._ended: BoolArray = np.zeros(num_envs, np.bool_)
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
            options: {"sequence": index, or one index for each environment that is reset} picks the sequences;
                {"reset_mask": booleans of shape [num_envs]} resets some environments alone.
        """
        options = dict(options or {})
        rows = self._rows_to_reset(options.pop("reset_mask", None))
        self._seed(seed)
        started = self.core.start(rows, [self._generators[row] for row in rows], options)
        self._ended[rows] = False
        observations = self.core.observe()
        observations[rows] = started
        return observations, self._masked(rows, self.core.sequence_info(rows))

    def _rows_to_reset(self, mask: ArrayLike | None) -> IntArray:
        if mask is None:
            return self._everyone
        chosen = np.asarray(mask)
        if chosen.shape != (self.num_envs,) or chosen.dtype != np.bool_ or not chosen.any():
            raise ConfigError(
                f"Expected a reset_mask of {self.num_envs} booleans, at least one of them True, got {mask!r}."
            )
        if not self._generators and not chosen.all():
            raise ConfigError("Expected a first reset() of all environments, got a reset_mask.")
        return np.flatnonzero(chosen)

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
        """Makes one decode step in every environment, and starts episodes as `autoreset_mode` has it."""
        if not self._generators:
            raise ConfigError("Expected reset() before the first step.")
        waiting = self._ended
        if waiting.any() and self.autoreset_mode is AutoresetMode.DISABLED:
            raise ResetNeeded(
                f"Expected running episodes, but those of environments {np.flatnonzero(waiting).tolist()} have ended. "
                "Call reset(options={'reset_mask': mask})."
            )
        step, rewards = self.core.step(actions, ~waiting if waiting.any() else None)
        observations = self.core.observe()
        infos: dict[str, Any] = {}
        for name in STEP_INFO:
            infos[name] = getattr(step, name)
            infos[f"_{name}"] = ~waiting
        begins = np.flatnonzero(waiting)
        ends = np.flatnonzero(step.terminated | step.truncated)
        self._ended = np.zeros(self.num_envs, np.bool_)
        if len(begins):
            self._begin(begins, observations, infos)
        if len(ends) and self.autoreset_mode is AutoresetMode.SAME_STEP:
            self._finish(ends, step, observations, infos)
        elif len(ends):
            self._ended[ends] = True
            infos |= {"decode": self._masked(ends, self.core.episode_sums(ends)), "_decode": self._ended.copy()}
        return observations, rewards, step.terminated, step.truncated, infos

    def _begin(self, rows: IntArray, observations: FloatArray, infos: dict[str, Any]) -> None:
        observations[rows] = self.core.start(rows, [self._generators[row] for row in rows])
        infos |= self._masked(rows, self.core.sequence_info(rows))

    def get_state(self) -> tuple[dict[str, NDArray[Any]], list[dict[str, Any]]]:
        """Copies out all that future steps depend on besides recordings and settings; call it after a reset.

        The generators' states are one an environment, plain data that JSON can hold.
        """
        return self.core.get_state(), [dict(g.bit_generator.state) for g in self._generators]

    def set_state(self, arrays: Mapping[str, NDArray[Any]], generators: Sequence[Mapping[str, Any]]) -> None:
        """Restores a state copied from the same recordings, settings and number of environments."""
        if len(generators) != self.num_envs or arrays["sequence"].shape != (self.num_envs,):
            raise ConfigError(f"Expected the state of {self.num_envs} environments, got {len(generators)}.")
        self._seed(0)
        self.core.set_state(arrays, self._generators)
        # Last, because starting episodes under "rejection" draws from the generators.
        for generator, state in zip(self._generators, generators, strict=True):
            generator.bit_generator.state = dict(state)

    def _finish(self, rows: IntArray, step: ReplayStep, observations: FloatArray, infos: dict[str, Any]) -> None:
        final = np.full(self.num_envs, None, object)
        for row in rows:
            final[row] = observations[row].copy()
        sums = self._masked(rows, self.core.episode_sums(rows))
        of_step = self._masked(rows, {name: getattr(step, name)[rows] for name in STEP_INFO})
        ended = of_step["_seconds"]
        infos |= {
            "final_obs": final,
            "_final_obs": ended.copy(),
            "final_info": of_step | {"decode": sums, "_decode": ended.copy()},
            "_final_info": ended.copy(),
        }
        self._begin(rows, observations, infos)

    def _masked(self, rows: IntArray, values: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        mask = np.zeros(self.num_envs, np.bool_)
        mask[rows] = True
        for name, value in values.items():
            spread = np.full(self.num_envs, None if value.dtype == object else 0, value.dtype)
            spread[rows] = value
            infos[name], infos[f"_{name}"] = spread, mask.copy()
        return infos


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    if isinstance(mode, AutoresetMode):
        return mode
    known = {m.value: m for m in AutoresetMode}
    if mode not in known:
        raise ConfigError(
            f"Expected an autoreset_mode among {sorted(known)}, got {mode!r}.{nearest(mode, list(known))}"
        )
    return known[mode]
