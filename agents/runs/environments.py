# SPDX-License-Identifier: Apache-2.0
"""Environments of Stable-Baselines3 learners: recordings, or requests that real models decode."""

import copy
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.utils.seeding import np_random
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from speckv.agents.runs.requests import LEARN, MEASURE, DecodedRequest, LiveTask, RequestLog
from speckv.agents.runs.settings import EnvSettings, RewardSettings, TrainSettings
from speckv.cost import CostTable
from speckv.envs import DraftStoppingVectorEnv, GammaSelectionVectorEnv
from speckv.envs.live import LiveDecodingEnv
from speckv.envs.sb3_bridge import SB3VecEnv
from speckv.traces import TraceSet
from speckv.types import FloatArray

REWARDS_WITH_LAMBDA = ("lambda_throughput", "tokens_minus_cost")


class Resumable(Protocol):
    """Environments with a state that a checkpoint can hold."""

    def get_state(self) -> tuple[dict[str, NDArray[Any]], list[dict[str, Any]]]:
        """Copies the state: arrays by name, and JSON data of each generator."""

    def set_state(self, arrays: Mapping[str, NDArray[Any]], generators: Sequence[Mapping[str, Any]]) -> None:
        """Restores a copied state."""

    def set_lambda(self, values: Mapping[str, float]) -> None:
        """Sets the throughput, in tokens a second, that some rewards compare with."""


class LearnerEnvironment:
    """A vector environment of a learner; `recent` holds the last live requests."""

    recent: Sequence[DecodedRequest] = ()

    def __init__(self, vec: VecEnv, state: Resumable, gamma_max: int) -> None:
        self.vec, self.state, self.gamma_max = vec, state, gamma_max

    def begin(self, model: BaseAlgorithm, *, resumed: bool) -> None:
        """Prepares for learning, after the observations were measured or a checkpoint was loaded."""

    def end(self) -> None:
        """Ends an unfinished episode."""


class ReplayEnvironment(LearnerEnvironment):
    """Replays recordings."""

    def __init__(self, vec: SB3VecEnv) -> None:
        super().__init__(vec, vec.envs, vec.envs.core.gamma_max)
        self.replay = vec


class LiveEnvironment(LearnerEnvironment):
    """Decodes live requests, one at a time."""

    def __init__(self, env: LiveDecodingEnv, log: RequestLog, arm: str, recent: int) -> None:
        self.recorder = RequestRecorder(env, log, arm, recent)
        self.recent = self.recorder.recent
        self._log, self._dummy = log, DummyVecEnv([lambda: self.recorder])
        super().__init__(self._dummy, self.recorder, env.gamma_max)

    def begin(self, model: BaseAlgorithm, *, resumed: bool) -> None:
        """Begins with a fresh request; a resumed one cannot continue, because its caches and clocks are gone."""
        if resumed:
            model._last_obs = None
            self._dummy._reset_seeds()
            self._log.drop_from(self.recorder.number)
        self.recorder.cut_off()
        self.recorder.phase = LEARN
        self.recorder.recent.clear()

    def end(self) -> None:
        """Logs the request that is being decoded."""
        self.recorder.cut_off()


class RequestRecorder(gym.Wrapper[FloatArray, np.int64, FloatArray, np.int64]):
    """Logs every request, and adds the episode's figures for Stable-Baselines3 to `info`."""

    def __init__(self, env: LiveDecodingEnv, log: RequestLog, arm: str, recent: int) -> None:
        super().__init__(env)
        self.live = env
        self.phase = MEASURE
        self.number = 0
        self.recent: deque[DecodedRequest] = deque(maxlen=recent)
        self._log, self._arm = log, arm
        self._current: DecodedRequest | None = None
        self._before: dict[str, Any] = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Begins a request; one that had not ended is logged as cut off."""
        self.cut_off()
        if seed is not None:
            # Before the draw of the prompt, so that a resumed run can make that draw again.
            self.live.np_random, _ = np_random(seed)
        self._before = copy.deepcopy(dict(self.live.np_random.bit_generator.state))
        observation, info = self.env.reset(options=options)
        self._current = DecodedRequest(number=self.number, prompt_id=info["prompt_id"], phase=self.phase, arm=self._arm)
        return observation, info

    def step(self, action: np.int64) -> tuple[FloatArray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Steps the environment; where a request ends, `info` holds `episode`."""
        assert self._current is not None, "reset comes first"
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except BaseException:
            self.cut_off()
            raise
        decoded = self._current
        decoded.reward += float(reward)
        if "outcome" in info:
            decoded.add(info["outcome"])
        if terminated or truncated:
            self._close(self.live.engine.finish)
            info["episode"] = {"r": decoded.reward, "l": decoded.num_steps}
            self.recent.append(decoded)
        return observation, reward, terminated, truncated, info

    def cut_off(self) -> None:
        """Logs the request that is being decoded, if there is one."""
        if self._current is not None:
            self._close(None)

    def _close(self, finish: str | None) -> None:
        assert self._current is not None
        self._log.append(self._current.line(self.live.engine.tokens, finish))
        self._current = None
        self.number += 1

    def set_lambda(self, values: Mapping[str, float]) -> None:
        """Sets the throughput that some rewards compare with; there is one at most."""
        for rate in values.values():
            self.live.set_lambda(rate)

    def get_state(self) -> tuple[dict[str, NDArray[Any]], list[dict[str, Any]]]:
        """The generator's state at the start of the current request, and the request's number."""
        return {}, [{"generator": self._before, "request": self.number}]

    def set_state(self, arrays: Mapping[str, NDArray[Any]], generators: Sequence[Mapping[str, Any]]) -> None:
        """Makes the next reset restart the request of the copied state."""
        del arrays
        (state,) = generators
        self._current = None
        self.number = int(state["request"])
        self.live.np_random, _ = np_random(0)
        self.live.np_random.bit_generator.state = dict(state["generator"])


def make_environment(
    traces: TraceSet, cost: CostTable, env: EnvSettings, reward: RewardSettings, num_envs: int
) -> SB3VecEnv:
    """Makes the vector environment of recordings."""
    options = {"token_cost": reward.token_cost} if reward.name == "tokens_minus_cost" else None
    kind = DraftStoppingVectorEnv if env.decides == "per_token" else GammaSelectionVectorEnv
    return SB3VecEnv(
        kind(
            num_envs,
            traces=traces,
            cost=cost,
            split=None,
            gamma_max=min(env.gamma_max, traces.metadata.gamma_max),
            reward=reward.name,
            reward_options=options,
            budget=env.budget,
            acceptance=env.acceptance,
            clocks=env.clocks,
        )
    )


def make_live_environment(task: LiveTask, settings: TrainSettings) -> LiveDecodingEnv:
    """Makes the environment of live requests for the learning prompts."""
    return LiveDecodingEnv(
        engine=task.engine,
        prompts=task.learning,
        cost=task.cost,
        compression=task.compression,
        max_new_tokens=task.max_new_tokens,
        decides=settings.env.decides,
        gamma_max=settings.env.gamma_max,
        reward=settings.reward.name,
    )
