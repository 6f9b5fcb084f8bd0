# SPDX-License-Identifier: Apache-2.0
"""What the scalar and the vector environment share: the replay, the reward and the sums over an episode."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from envs.rewards import Rewards, make_reward
from speckv.cost import CompiledCost, CostTable
from speckv.errors import ConfigError, TraceError
from speckv.observation import SCHEMA, ObservationSchema
from speckv.replay import CompiledTraces, ReplayBatch, ReplayStep
from speckv.traces import TraceSet, find_traces
from speckv.types import FloatArray, IntArray

STEP_INFO = ("num_drafted", "num_accepted", "num_emitted", "seconds")
"""What `info` tells of every step."""

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

RewardOptions = Mapping[str, float | str | Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Arguments of the gamma selection environments.

    Attributes:
        traces: A shipped trace's name, a file, or a trace set.
        cost: A shipped cost table's name, a file, or a table.
        split: "train", "test", or None for both.
        compressions: Which to keep, all if None.
        tasks: Which to keep, all if None.
        gamma_max: Greatest action, at most the recording's.
        reward: A key of `envs.rewards.REWARDS`; None for the environment's own.
        reward_options: Its options.
        reward_scale: Multiplies every reward.
        budget: Token budget, at most the recording's, which is the default.
        acceptance: "recorded", or "rejection" to draw acceptances anew for each episode of a sampled text.
    """

    traces: str | Path | TraceSet
    cost: str | Path | CostTable
    split: str | None
    compressions: Sequence[str] | None
    tasks: Sequence[str] | None
    gamma_max: int
    reward: str | None
    reward_options: RewardOptions | None
    reward_scale: float
    budget: int | None
    acceptance: str


class Core:
    """Some replay slots with a reward and running sums.

    Attributes:
        traces: The selection that is replayed; sequence indices point into it.
        cost_table: The times.
        batch: The replay.
        reward: Values the steps.
        reward_name: Which it is.
        gamma_max: Greatest action.
    """

    schema: ObservationSchema = SCHEMA
    default_reward = "throughput"

    def __init__(self, settings: Settings, num_envs: int) -> None:
        """Loads the traces and the cost table, and makes idle slots.

        Raises:
            ConfigError: if a setting is out of range.
            TraceError: if no sequence can be replayed.
            CostTableError: if a compression has no times.
        """
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
        """Returns the space of one environment's observations."""
        return cast("spaces.Space[FloatArray]", spaces.Box(self.schema.low, self.schema.high, dtype=np.float32))

    def action_space(self) -> spaces.Discrete:
        """Returns the space of one environment's actions."""
        return spaces.Discrete(self.gamma_max + 1)

    def start(
        self, rows: IntArray, generators: Sequence[np.random.Generator], options: Mapping[str, Any] | None = None
    ) -> FloatArray:
        """Starts an episode in some slots and returns their first observations.

        Args:
            rows: Slots.
            generators: One a slot: it draws the sequence, and acceptances under "rejection".
            options: {"sequence": index, or one index a slot} fixes the sequences.
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
        """Shape [N, features]; what each slot's controller sees now."""
        return self.batch.observe()

    def step(self, actions: ArrayLike) -> tuple[ReplayStep, Rewards]:
        """Makes one decode step in every slot.

        Raises:
            ConfigError: if an action is none.
        """
        gammas = np.asarray(actions)
        if gammas.size and gammas.max() > self.gamma_max:
            raise ConfigError(f"Expected actions from 0 to {self.gamma_max}, got {gammas.max()}.")
        step = self.batch.step(gammas)
        return step, self._account(step, num_steps=1)

    def _account(self, step: ReplayStep, *, num_steps: IntArray | int) -> Rewards:
        """Rewards a step and adds it to the sums."""
        rewards = self.reward(step, self.batch.comp_index)
        rewards *= self._scale
        sums = self._sums
        sums["return"] += rewards
        sums["num_steps"] += num_steps
        sums["num_tokens"] += step.num_emitted
        sums["num_drafted"] += step.num_drafted
        sums["num_accepted"] += step.num_accepted
        sums["num_tested"] += step.num_tested
        sums["seconds"] += step.seconds
        return rewards

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Copies out the state of all slots, as arrays by name."""
        return self.batch.get_state() | {f"sums.{name}": values.copy() for name, values in self._sums.items()}

    def set_state(self, arrays: Mapping[str, NDArray[Any]], generators: Sequence[np.random.Generator]) -> None:
        """Puts a copied state back.

        Args:
            arrays: From `get_state`.
            generators: One a slot; "rejection" draws from them here, so their own states are restored afterwards.
        """
        self.batch.set_state(arrays, generators)
        for name, values in self._sums.items():
            values[:] = arrays[f"sums.{name}"]

    def describe(self, step: ReplayStep) -> str:
        """What the first slot's last step did, in a few words: accepted drafts as +, others as -."""
        drafted, accepted = int(step.num_drafted[0]), int(step.num_accepted[0])
        return f"drafted {'+' * accepted}{'-' * (drafted - accepted)}"

    def episode_sums(self, rows: IntArray) -> dict[str, NDArray[Any]]:
        """Returns the sums of some slots' episodes so far."""
        return {name: total[rows] for name, total in self._sums.items()}

    def sequence_info(self, rows: IntArray) -> dict[str, NDArray[Any]]:
        """Returns which sequences some slots replay."""
        sequences = self.batch.sequence[rows]
        return {"sequence": sequences} | {name: values[sequences] for name, values in self._names.items()}
