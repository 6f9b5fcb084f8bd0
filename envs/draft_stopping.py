# SPDX-License-Identifier: Apache-2.0
"""Decide token by token: after each drafted token, draft another one or verify."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from speckv.cost import require_single_request
from speckv.envs.core import Core, ReplayEnv, ReplayEnvSettings
from speckv.envs.rewards import Rewards
from speckv.envs.vector import ReplayVectorEnv
from speckv.errors import ConfigError
from speckv.observation import STOPPING_SCHEMA
from speckv.replay import ReplayStep
from speckv.types import BoolArray, FloatArray, IntArray

VERIFY, DRAFT = 0, 1


class StoppingCore(Core):
    """Slots that draft a token or verify; `depth`, of shape [N], counts the tokens of the present draft.

    A ConfigError also refuses rewards of whole decode steps, redrawn acceptances, and the times of a batch.
    """

    schema = STOPPING_SCHEMA
    default_reward = "lambda_throughput"

    def __init__(self, settings: ReplayEnvSettings, num_envs: int) -> None:
        if settings.reward == "throughput":
            raise ConfigError(
                "Expected a reward that adds up over a decode step, such as lambda_throughput, got throughput, a ratio."
            )
        super().__init__(settings, num_envs)
        require_single_request("an environment", self.cost_table.batch)
        if self.batch.acceptance == "rejection":
            raise ConfigError(
                "Expected acceptance=recorded, got rejection: signals behind a redrawn rejection were never recorded."
            )
        self.depth: IntArray = np.zeros(num_envs, np.int64)
        self._num_decisions: IntArray = np.zeros(num_envs, np.int64)
        self._spent_s = np.zeros(num_envs)
        self._verified: BoolArray = np.zeros(num_envs, np.bool_)
        self._drafted: IntArray = np.zeros(num_envs, np.int64)
        self._before = np.zeros((num_envs, self.batch.first_observations.shape[1]), np.float32)

    def action_space(self) -> spaces.Discrete:
        """Verify or draft."""
        return spaces.Discrete(2)

    def start(
        self, rows: IntArray, generators: Sequence[np.random.Generator], options: Mapping[str, Any] | None = None
    ) -> FloatArray:
        """Starts an episode in some slots; see `Core.start`."""
        self._before[rows] = super().start(rows, generators, options)
        self._begin_step(rows)
        return self.observe()[rows]

    def observe(self) -> FloatArray:
        """Shape [N, features]; each slot's observation, as `STOPPING_SCHEMA` lists."""
        return self.batch.observe_draft(self._before, self.depth)

    def step(self, actions: ArrayLike, where: BoolArray | None = None) -> tuple[ReplayStep, Rewards]:
        """Drafts a token or verifies in every slot, or in those of `where`; a full draft is verified at once.

        The returned step's `num_drafted` and `seconds` are those of this action alone; verifying emits the tokens.
        """
        chosen = np.asarray(actions)
        if chosen.size and not np.isin(chosen, (VERIFY, DRAFT)).all():
            raise ConfigError(f"Expected actions {VERIFY} (verify) or {DRAFT} (draft), got {chosen.tolist()}.")
        batch = self.batch
        acts: BoolArray = np.ones(len(self.depth), np.bool_) if where is None else where
        position = batch.history.emitted
        limit, _ = batch.draft_limits(position)
        reachable = np.minimum(self.gamma_max, np.maximum(limit, 0))
        drafts = (chosen == DRAFT) & (self.depth < reachable) & acts
        context = batch.prompt_len + position
        pass_s = batch.draft_pass_seconds(self.depth)
        self.depth += drafts
        self._num_decisions += acts
        verifies = (~drafts | (self.depth == reachable)) & acts
        whole = batch.step(self.depth, verifies, self._num_decisions)
        action_s = (np.where(drafts, pass_s, 0.0) + batch.controller_s) * acts
        seconds = np.where(verifies, whole.seconds - self._spent_s, action_s)
        self._spent_s += action_s
        step = replace(whole, num_drafted=drafts.astype(np.int64), seconds=seconds, context=context)
        rewards = self._account(step, num_steps=verifies.astype(np.int64), where=where)
        self._verified, self._drafted = verifies, whole.num_drafted
        rows = np.flatnonzero(verifies)
        self._before[rows] = batch.observe()[rows]
        self._begin_step(rows)
        return step, rewards

    def describe(self, step: ReplayStep) -> str:
        """The first slot's last action in a few words."""
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


class DraftStoppingEnv(ReplayEnv):
    """Decides after each drafted token of a recorded request whether to draft another one.

    ## Description
    As `SpecKV/GammaSelection-v0`, with the decision inside the decode step: the draft's certainty at the tokens drafted
    so far is known at each decision, and carries most of the information.

    ## Action space
    `Discrete(2)`: 0 verifies what has been drafted (plain decoding if that is nothing), 1 drafts another token. A draft
    that can grow no further, at `gamma_max`, at a drafted end of text, at the token budget or where the draft has
    nothing to propose, is verified at once.

    ## Observation space
    `Box(25,)`, float32: the 17 features of `SpecKV/GammaSelection-v0` as they were when the decode step began, then the
    draft so far.

    | Num | Observation | Unit | Min | Max |
    |-----|-------------|------|-----|-----|
    | 0 to 16 | As in `SpecKV/GammaSelection-v0`, at the decode step's start | | | |
    | 17 | Tokens drafted so far, over 16 | 1 | 0 | 1 |
    | 18 | Draft's entropy at the newest drafted token | nats | 0 | 12 |
    | 19 | Draft's confidence (top-1 probability) there | 1 | 0 | 1 |
    | 20 | Draft's margin (top-1 minus top-2 probability) there | 1 | 0 | 1 |
    | 21 | Draft's mean entropy over the tokens drafted so far | nats | 0 | 12 |
    | 22 | Draft's greatest entropy over them | nats | 0 | 12 |
    | 23 | Draft's least confidence over them | 1 | 0 | 1 |
    | 24 | Sum of the logarithms of its confidences over them | nats | -12 | 0 |

    Before the first token 18, 21, 22 and 24 are 0, 19, 20 and 23 are 1.

    ## Rewards
    Drafting costs its pass when it happens; tokens come, and the target's pass is paid, when a draft is verified.
    `lambda_throughput` (the default), `time`, `tokens_minus_cost` and `tokens` add up over actions; `throughput` is a
    ratio of a whole decode step and is refused. Every action costs the table's time for a decision.

    ## Starting state, episode end, info
    As in `SpecKV/GammaSelection-v0`; `num_drafted` and `seconds` of an action are its own, `num_steps` of an episode
    counts decode steps.

    ## Version history
    * v0: first release.
    """

    core_class = StoppingCore


class DraftStoppingVectorEnv(ReplayVectorEnv):
    """Many `DraftStoppingEnv` at once, with the same actions, observations, rewards and episode ends."""

    core_class = StoppingCore
