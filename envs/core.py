# SPDX-License-Identifier: Apache-2.0
"""Environments that replay recorded requests: one (`ReplayEnv`) or many at once (`ReplayVectorEnv`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from speckv.cost import CompiledCost, CostTable
from speckv.envs.rewards import RewardOptions, Rewards, make_reward
from speckv.errors import ConfigError, TraceError
from speckv.observation import SCHEMA, ObservationSchema
from speckv.replay import CompiledTraces, ReplayBatch, ReplayStep
from speckv.traces import TraceSet, find_traces
from speckv.types import GAMMA_MAX, BoolArray, FloatArray, IntArray

STEP_INFO = ("num_drafted", "num_accepted", "num_emitted", "seconds")
"""What `info` holds of every step."""

EPISODE_INFO = {
    "return": np.float64,
    "num_steps": np.int64,
    "num_tokens": np.int64,
    "num_drafted": np.int64,
    "num_accepted": np.int64,
    "num_tested": np.int64,
    "seconds": np.float64,
}
"""What `info["decode"]` sums over an episode at its end. "episode" is the key of Gymnasium's own statistics."""

_SLOT = np.zeros(1, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayEnvSettings:
    """Arguments of the replayed environments.

    Attributes:
        traces: A shipped trace's name, a file, or a trace set.
        cost: A shipped cost table's name, a file, or a table.
        split: "train", "test", or None for both.
        compressions, tasks: All if None.
        gamma_max: Greatest action, at most the recording's.
        reward: A key of `envs.rewards.REWARDS`; None for the environment's own.
        budget: Token budget; the recording's by default and at most.
        acceptance: "recorded", or "rejection" to draw acceptances anew for each episode of a sampled text.
    """

    traces: str | Path | TraceSet = "qwen2.5-coder-greedy"
    cost: str | Path | CostTable = "cpu-2core"
    split: str | None = "train"
    compressions: Sequence[str] | None = None
    tasks: Sequence[str] | None = None
    gamma_max: int = GAMMA_MAX
    reward: str | None = None
    reward_options: RewardOptions | None = None
    reward_scale: float = 1.0
    budget: int | None = None
    acceptance: str = "recorded"


class Core:
    """Replay slots with a reward and sums over their episodes; a SpecKVError where a setting does not fit."""

    schema: ObservationSchema = SCHEMA
    default_reward = "throughput"

    def __init__(self, settings: ReplayEnvSettings, num_envs: int) -> None:
        given, cost = settings.traces, settings.cost
        traces = given if isinstance(given, TraceSet) else TraceSet.load(find_traces(given))
        self.traces = traces.select(split=settings.split, compressions=settings.compressions, tasks=settings.tasks)
        self.cost_table = cost if isinstance(cost, CostTable) else CostTable.load(cost)
        compiled = CompiledTraces(self.traces)
        if not 1 <= settings.gamma_max <= compiled.gamma_max:
            raise ConfigError(
                f"Expected gamma_max from 1 to the recording's {compiled.gamma_max}, got {settings.gamma_max}."
            )
        costs = CompiledCost(self.cost_table, compiled.compression_names, gamma_max=compiled.gamma_max)
        self.batch = ReplayBatch(
            compiled,
            costs,
            num_envs,
            budget=settings.budget,
            acceptance=settings.acceptance,
            controller_s=costs.controller_s,
        )
        self.playable = self.batch.playable
        if not len(self.playable):
            raise TraceError("Expected a sequence with at least one decode step, got only one-token outputs.")
        self.reward_name = settings.reward or self.default_reward
        self.reward = make_reward(self.reward_name, costs, settings.reward_options)
        self._scale = settings.reward_scale
        self.gamma_max = settings.gamma_max
        self._sums = {name: np.zeros(num_envs, dtype) for name, dtype in EPISODE_INFO.items()}
        self._names = {
            "prompt_id": np.array(compiled.prompt_ids, object),
            "task": np.array(compiled.tasks, object),
            "compression": np.array(compiled.compressions, object),
        }

    def observation_space(self) -> spaces.Space[FloatArray]:
        """The space of one environment's observations."""
        return cast("spaces.Space[FloatArray]", spaces.Box(self.schema.low, self.schema.high, dtype=np.float32))

    def action_space(self) -> spaces.Discrete:
        """The space of one environment's actions."""
        return spaces.Discrete(self.gamma_max + 1)

    def start(
        self, rows: IntArray, generators: Sequence[np.random.Generator], options: Mapping[str, Any] | None = None
    ) -> FloatArray:
        """Starts an episode in some slots and returns their first observations.

        A slot's generator draws its sequence, unless the option "sequence" fixes it, and acceptances under "rejection".
        """
        fixed = self._fixed_sequences(options or {}, len(rows))
        if fixed is None:
            count = len(self.playable)
            fixed = self.playable[[int(generator.integers(count)) for generator in generators]]
        self.batch.assign(rows, fixed, generators)
        for total in self._sums.values():
            total[rows] = 0
        return self.batch.first_observations[fixed]

    def _fixed_sequences(self, options: Mapping[str, Any], count: int) -> IntArray | None:
        unknown = sorted(set(options) - {"sequence"})
        if unknown:
            raise ConfigError(f"Expected only the reset option 'sequence', got {unknown}.")
        if "sequence" not in options:
            return None
        asked = np.asarray(options["sequence"])
        if asked.shape not in ((), (count,)) or not np.isin(asked, self.playable).all():
            raise ConfigError(
                f"Expected one sequence index, or {count}, below {len(self.traces.sequences)} and with a decode step, "
                f"got {options['sequence']!r}."
            )
        return np.broadcast_to(asked.astype(np.int64), count)

    def observe(self) -> FloatArray:
        """Shape [N, features]; each slot's observation."""
        return self.batch.observe()

    def step(self, actions: ArrayLike) -> tuple[ReplayStep, Rewards]:
        """Makes one decode step in every slot."""
        gammas = np.asarray(actions)
        if gammas.size and gammas.max() > self.gamma_max:
            raise ConfigError(f"Expected actions from 0 to {self.gamma_max}, got {gammas.max()}.")
        step = self.batch.step(gammas)
        return step, self._account(step, num_steps=1)

    def _account(self, step: ReplayStep, *, num_steps: IntArray | int) -> Rewards:
        rewards = self.reward(step, self.batch.comp_index)
        rewards *= self._scale
        sums = self._sums
        sums["return"] += rewards
        sums["num_steps"] += num_steps
        sums["num_tokens"] += step.num_emitted
        for name in ("num_drafted", "num_accepted", "num_tested", "seconds"):
            sums[name] += getattr(step, name)
        return rewards

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Copies out the state of all slots, as arrays by name."""
        return self.batch.get_state() | {f"sums.{name}": values.copy() for name, values in self._sums.items()}

    def set_state(self, arrays: Mapping[str, NDArray[Any]], generators: Sequence[np.random.Generator]) -> None:
        """Restores a copied state; "rejection" draws from the generators, so restore their states afterwards."""
        self.batch.set_state(arrays, generators)
        for name, values in self._sums.items():
            values[:] = arrays[f"sums.{name}"]

    def describe(self, step: ReplayStep) -> str:
        """The first slot's last step in a few words: accepted drafts as +, others as -."""
        drafted, accepted = int(step.num_drafted[0]), int(step.num_accepted[0])
        return f"drafted {'+' * accepted}{'-' * (drafted - accepted)}"

    def episode_sums(self, rows: IntArray) -> dict[str, NDArray[Any]]:
        """Sums of some slots' episodes so far."""
        return {name: total[rows] for name, total in self._sums.items()}

    def sequence_info(self, rows: IntArray) -> dict[str, NDArray[Any]]:
        """The sequences that some slots replay."""
        sequences = self.batch.sequence[rows]
        return {"sequence": sequences} | {name: values[sequences] for name, values in self._names.items()}


class ReplayEnv(gym.Env[FloatArray, np.int64]):
    """One recorded request; subclasses define the actions."""

    core_class: type[Core] = Core
    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 (declared so by Gymnasium)

    def __init__(self, *, render_mode: str | None = None, **settings: Any) -> None:
        """Takes `ReplayEnvSettings`; with `render_mode` "ansi", `render` returns the last step as a line of text."""
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ConfigError(f"Expected a render mode among {self.metadata['render_modes']}, got {render_mode!r}.")
        self.core = self.core_class(ReplayEnvSettings(**settings), 1)
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
        """Starts an episode; `options={"sequence": index}` picks the sequence."""
        super().reset(seed=seed)
        observation = self.core.start(_SLOT, [self.np_random], options)[0]
        self._last = None
        return observation, self._scalars(self.core.sequence_info(_SLOT))

    def step(self, action: np.int64) -> tuple[FloatArray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Carries out an action; the environment's docstring defines it."""
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


class ReplayVectorEnv(VectorEnv[FloatArray, IntArray, NDArray[Any]]):
    """Many recorded requests at once; subclasses define the actions.

    Environment `k` equals the scalar one that was reset with `seed + k`, step by step. The next episode starts in the
    step that ends one (`AutoresetMode.SAME_STEP`): the observation is the new episode's first, and `infos` holds
    `final_obs` and `final_info`, the latter with the sums under `decode`.

    `infos` has Gymnasium's vector format: arrays over environments, each with a mask under its underscored name.
    `num_drafted`, `num_accepted`, `num_emitted` and `seconds` are given for every environment, those that ended
    included; `sequence`, `prompt_id`, `task` and `compression` where an episode began.
    """

    core_class: type[Core] = Core
    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (declared so by Gymnasium)

    def __init__(self, num_envs: int = 1, *, render_mode: str | None = None, **settings: Any) -> None:
        """Takes `ReplayEnvSettings`; nothing is rendered."""
        if num_envs < 1:
            raise ConfigError(f"Expected at least one environment, got num_envs={num_envs}.")
        if render_mode is not None:
            raise ConfigError(f"Expected render_mode None, got {render_mode!r}. Render a scalar environment instead.")
        self.core = self.core_class(ReplayEnvSettings(**settings), num_envs)
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
        observations[rows] = self.core.start(rows, [self._generators[row] for row in rows])
        infos |= self._masked(rows, self.core.sequence_info(rows))

    def _masked(self, rows: IntArray, values: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        mask = np.zeros(self.num_envs, np.bool_)
        mask[rows] = True
        for name, value in values.items():
            spread = np.full(self.num_envs, None if value.dtype == object else 0, value.dtype)
            spread[rows] = value
            infos[name], infos[f"_{name}"] = spread, mask.copy()
        return infos
