# SPDX-License-Identifier: Apache-2.0
"""Environments that replay recorded requests: one (`ReplayEnv`) or many at once (`ReplayVectorEnv`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import ArrayLike, NDArray

from speckv.cost import CompiledCost, CostTable
from speckv.cost.clocks import made_up_clocks
from speckv.envs.rewards import RewardFunction, RewardOptions, Rewards, make_reward, reward_name
from speckv.errors import ConfigError, TraceError
from speckv.observation import SCHEMA, ObservationSchema
from speckv.replay import CompiledTraces, ReplayBatch, ReplayStep
from speckv.traces import TraceSet, find_traces
from speckv.types import GAMMA_MAX, BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from speckv.envs.rendering import Frames

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
_RATIO = SCHEMA.index("cost_ratio")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayEnvSettings:
    """Arguments of the replayed environments.

    Attributes:
        traces: A shipped trace's name, a file, or a trace set.
        cost: A shipped cost table's name, a file, or a table.
        split: "train", "test", or None for both.
        compressions, tasks: All if None.
        gamma_max: Greatest action, at most the recording's.
        reward: A key of `speckv.envs.rewards.REWARDS`, a `RewardFunction` of one's own, or its "module:name"; None for
            the environment's default.
        budget: Token budget; the recording's by default and at most.
        acceptance: "recorded", or "rejection" to draw acceptances anew for each episode of a sampled text.
        clocks: Above 0, each episode runs on one of so many made-up cost tables (`speckv.cost.clocks`), drawn anew.
    """

    traces: str | Path | TraceSet = "qwen2.5-coder-greedy"
    cost: str | Path | CostTable = "cpu-2core"
    split: str | None = "train"
    compressions: Sequence[str] | None = None
    tasks: Sequence[str] | None = None
    gamma_max: int = GAMMA_MAX
    reward: str | RewardFunction | None = None
    reward_options: RewardOptions | None = None
    reward_scale: float = 1.0
    budget: int | None = None
    acceptance: str = "recorded"
    clocks: int = 0


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
        if settings.clocks < 0:
            raise ConfigError(f"Expected clocks of 0 or more, got {settings.clocks}.")
        names = compiled.compression_names
        tables = made_up_clocks(names, settings.clocks) or [self.cost_table]
        costs = CompiledCost(tables, names, gamma_max=compiled.gamma_max)
        self._num_clocks = len(tables)
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
        reward = settings.reward or self.default_reward
        self.reward_name = reward_name(reward)
        self.reward = make_reward(reward, costs, settings.reward_options)
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
        drawn = [int(g.integers(self._num_clocks)) for g in generators] if self._num_clocks > 1 else 0
        self.batch.assign(rows, fixed, generators, clocks=drawn)
        for total in self._sums.values():
            total[rows] = 0
        first = self.batch.first_observations[fixed]
        if self._num_clocks > 1:
            first[:, _RATIO] = self.batch.cost.cost_ratio[self.batch.comp_index[rows]]
        return first

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

    def step(self, actions: ArrayLike, where: BoolArray | None = None) -> tuple[ReplayStep, Rewards]:
        """Makes one decode step in every slot, or in those of the mask `where`; the others get reward 0."""
        gammas = np.asarray(actions)
        if gammas.size and gammas.max() > self.gamma_max:
            raise ConfigError(f"Expected actions from 0 to {self.gamma_max}, got {gammas.max()}.")
        step = self.batch.step(gammas, where)
        return step, self._account(step, num_steps=1, where=where)

    def _account(self, step: ReplayStep, *, num_steps: IntArray | int, where: BoolArray | None = None) -> Rewards:
        rewards = self._rewards(step, where)
        rewards *= self._scale
        sums = self._sums
        sums["return"] += rewards
        sums["num_steps"] += num_steps
        sums["num_tokens"] += step.num_emitted
        for name in ("num_drafted", "num_accepted", "num_tested", "seconds"):
            sums[name] += getattr(step, name)
        return rewards

    def _rewards(self, step: ReplayStep, where: BoolArray | None) -> Rewards:
        if where is None:
            return self.reward(step, self.batch.comp_index)
        rows = np.flatnonzero(where)
        rewards = np.zeros(len(where))
        rewards[rows] = self.reward(step.take(rows), self.batch.comp_index[rows])
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
    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # noqa: RUF012 (declared so by Gymnasium)

    def __init__(self, *, render_mode: str | None = None, **settings: Any) -> None:
        """Takes `ReplayEnvSettings`.

        Args:
            render_mode: What `render` returns: "ansi", a line of text on the last action; "rgb_array", a picture of
                the request so far, shape [480, 800, 3].
        """
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ConfigError(f"Expected a render mode among {self.metadata['render_modes']}, got {render_mode!r}.")
        self.core = self.core_class(ReplayEnvSettings(**settings), 1)
        self.render_mode = render_mode
        self.observation_space = self.core.observation_space()
        self.action_space = self.core.action_space()
        self._last: ReplayStep | None = None
        self._frames: Frames | None = None
        if render_mode == "rgb_array":
            from speckv.envs import rendering  # late, because Matplotlib takes a second to import

            batch = self.core.batch
            self._frames = rendering.Frames(
                self.core.traces,
                self.core.cost_table,
                budget=batch.budget,
                compared=batch.acceptance == "recorded",
            )

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
        if self._frames is not None:
            self._frames.start(int(self.core.batch.sequence[0]))
        return observation, self._scalars(self.core.sequence_info(_SLOT))

    def step(self, action: np.int64) -> tuple[FloatArray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Carries out an action; the environment's docstring defines it."""
        if not self.core.batch.running[0]:
            raise ResetNeeded("Expected a running episode: call reset() first, and again after an episode has ended.")
        if not self.action_space.contains(action):
            raise ConfigError(f"Expected an action in {self.action_space}, got {action!r}.")
        step, rewards = self.core.step([action])
        self._last = step
        if self._frames is not None:
            self._frames.add(step)
        terminated, truncated = bool(step.terminated[0]), bool(step.truncated[0])
        info = self._scalars({name: getattr(step, name) for name in STEP_INFO})
        if terminated or truncated:
            info["decode"] = self._scalars(self.core.episode_sums(_SLOT))
        return self.core.observe()[0], float(rewards[0]), terminated, truncated, info

    def render(self) -> str | NDArray[np.uint8] | None:
        """Returns what `render_mode` asks for."""
        if self.render_mode is None:
            gym.logger.warn("Expected a render_mode at construction, got none: nothing is rendered.")
            return None
        batch = self.core.batch
        if batch.sequence[0] < 0:
            raise ResetNeeded("Expected reset() before render().")
        status = self._status()
        return status if self._frames is None else self._frames.draw(status)

    def _status(self) -> str:
        batch = self.core.batch
        sequence = self.core.traces.sequences[int(batch.sequence[0])]
        where = f"{sequence.compression} {sequence.prompt_id}: {batch.history.emitted[0]}/{batch.budget} tokens"
        if self._last is None:
            return where
        return f"{where}, {self.core.describe(self._last)} in {self._last.seconds[0] * 1e3:.1f} ms"

    @staticmethod
    def _scalars(values: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        return {name: value.tolist()[0] for name, value in values.items()}
