# SPDX-License-Identifier: Apache-2.0
"""The core of token-by-token control: drafting a token and verifying are steps of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from envs.core import Core, Settings
from envs.rewards import Rewards
from speckv.cost import require_single_request
from speckv.errors import ConfigError
from speckv.observation import STOPPING_SCHEMA
from speckv.replay import ReplayStep
from speckv.types import BoolArray, FloatArray, IntArray

VERIFY, DRAFT = 0, 1


class StoppingCore(Core):
    """Slots that draft a token or verify.

    Attributes:
        depth: Shape [N]; tokens drafted in the present decode step.
    """

    schema = STOPPING_SCHEMA
    default_reward = "lambda_throughput"

    def __init__(self, settings: Settings, num_envs: int) -> None:
        """See `Core`.

        Raises:
            ConfigError: also for a reward that values whole decode steps alone, for redrawn acceptances, and for the
                times of a batch.
        """
        if settings.reward == "throughput":
            raise ConfigError(
                "Expected a reward that adds up over the parts of a decode step, such as lambda_throughput or time, "
                "got throughput, a ratio. Choose another, or the environment that decides once a step."
            )
        super().__init__(settings, num_envs)
        require_single_request("an environment", self.cost_table.batch)
        if self.batch.acceptance == "rejection":
            raise ConfigError(
                "Expected acceptance=recorded, got rejection: what a draft says behind a redrawn rejection was never "
                "recorded."
            )
        self.depth: IntArray = np.zeros(num_envs, np.int64)
        self._num_decisions: IntArray = np.zeros(num_envs, np.int64)
        self._spent_s = np.zeros(num_envs)
        self._verified: BoolArray = np.zeros(num_envs, np.bool_)
        self._drafted: IntArray = np.zeros(num_envs, np.int64)
        self._before = np.zeros((num_envs, self.batch.first_observations.shape[1]), np.float32)

    def action_space(self) -> spaces.Discrete:
        """Returns the space of one environment's actions: verify or draft."""
        return spaces.Discrete(2)

    def start(
        self, rows: IntArray, generators: Sequence[np.random.Generator], options: Mapping[str, Any] | None = None
    ) -> FloatArray:
        """Starts an episode in some slots; see `Core.start`."""
        self._before[rows] = super().start(rows, generators, options)
        self._begin_step(rows)
        return self.observe()[rows]

    def observe(self) -> FloatArray:
        """Shape [N, features]; what each slot's controller sees now, as `STOPPING_SCHEMA` lists."""
        return self.batch.observe_draft(self._before, self.depth)

    def step(self, actions: ArrayLike) -> tuple[ReplayStep, Rewards]:
        """Drafts a token or verifies in every slot; a draft that can grow no further is verified at once.

        Returns:
            The step's `num_drafted` and `seconds` are those of this action alone; tokens are emitted by verifying.

        Raises:
            ConfigError: if an action is none.
        """
        wanted = np.asarray(actions)
        if wanted.size and not np.isin(wanted, (VERIFY, DRAFT)).all():
            raise ConfigError(f"Expected actions {VERIFY} (verify) or {DRAFT} (draft), got {wanted.tolist()}.")
        batch = self.batch
        position = batch.history.emitted
        limit, _ = batch.draft_limits(position)
        reachable = np.minimum(self.gamma_max, np.maximum(limit, 0))
        drafts = (wanted == DRAFT) & (self.depth < reachable)
        context = batch.prompt_len + position
        pass_s = batch.draft_pass_seconds(self.depth)
        self.depth += drafts
        self._num_decisions += 1
        verifies = ~drafts | (self.depth == reachable)
        whole = batch.step(self.depth, verifies, self._num_decisions)
        action_s = np.where(drafts, pass_s, 0.0) + batch.controller_s
        seconds = np.where(verifies, whole.seconds - self._spent_s, action_s)
        self._spent_s += action_s
        step = replace(whole, num_drafted=drafts.astype(np.int64), seconds=seconds, context=context)
        rewards = self._account(step, num_steps=verifies.astype(np.int64))
        self._verified, self._drafted = verifies, whole.num_drafted
        rows = np.flatnonzero(verifies)
        self._before[rows] = batch.observe()[rows]
        self._begin_step(rows)
        return step, rewards

    def describe(self, step: ReplayStep) -> str:
        """What the first slot's last action did, in a few words."""
        if not self._verified[0]:
            return f"drafting {'?' * int(self.depth[0])}"
        return super().describe(replace(step, num_drafted=self._drafted))

    def _begin_step(self, rows: IntArray) -> None:
        self.depth[rows], self._num_decisions[rows], self._spent_s[rows] = 0, 0, 0.0

    def get_state(self) -> dict[str, NDArray[Any]]:
        """See `Core.get_state`."""
        own: dict[str, NDArray[Any]] = {"depth": self.depth, "num_decisions": self._num_decisions}
        own |= {"spent_s": self._spent_s, "before": self._before}
        return super().get_state() | {f"draft.{name}": values.copy() for name, values in own.items()}

    def set_state(self, arrays: Mapping[str, NDArray[Any]], generators: Sequence[np.random.Generator]) -> None:
        """See `Core.set_state`."""
        super().set_state(arrays, generators)
        self.depth, self._num_decisions, self._spent_s, self._before = (
            np.array(arrays[f"draft.{name}"]) for name in ("depth", "num_decisions", "spent_s", "before")
        )
