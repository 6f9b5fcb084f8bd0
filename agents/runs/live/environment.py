# SPDX-License-Identifier: Apache-2.0
"""The live environment as a learner gets it: requests written down, and a state that a checkpoint can hold."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.utils.seeding import np_random
from numpy.typing import NDArray

from agents.runs.live.decoded import LEARN, Decoded, DecodedLog
from envs.live import LiveDecodingEnv
from speckv.types import FloatArray


class RecordedRequests(gym.Wrapper[FloatArray, np.int64, FloatArray, np.int64]):
    """Writes a line for every request, and gives Stable-Baselines3 its figures of an episode.

    Args:
        env: The environment.
        log: Takes the lines.
        arm: Written into them.

    Attributes:
        phase: Written into them too.
        number: Of the request that is being decoded.
        finished: Requests that ended since whoever reads it emptied it.
    """

    def __init__(self, env: LiveDecodingEnv, log: DecodedLog, arm: str) -> None:
        super().__init__(env)
        self.live = env
        self.phase = LEARN
        self.number = 0
        self.finished: list[Decoded] = []
        self._log, self._arm = log, arm
        self._current: Decoded | None = None
        self._before: dict[str, Any] = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Begins a request; one that was not ended is written down as cut off."""
        self.cut_off()
        if seed is not None:
            # Before the draw of the prompt, so that a resumed run can make that draw again.
            self.live.np_random, _ = np_random(seed)
        self._before = copy.deepcopy(dict(self.live.np_random.bit_generator.state))
        observation, info = self.env.reset(options=options)
        self._current = Decoded(number=self.number, prompt_id=info["prompt_id"], phase=self.phase, arm=self._arm)
        return observation, info

    def step(self, action: np.int64) -> tuple[FloatArray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Passes on; where a request ends, `info` holds `episode`."""
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
            self.finished.append(decoded)
        return observation, reward, terminated, truncated, info

    def cut_off(self) -> None:
        """Writes the request that is being decoded as it is, if there is one."""
        if self._current is not None:
            self._close(None)

    def _close(self, finish: str | None) -> None:
        assert self._current is not None
        self._log.append(self._current.line(self.live.engine.tokens, finish))
        self._current = None
        self.number += 1

    def get_state(self) -> tuple[dict[str, NDArray[Any]], list[dict[str, Any]]]:
        """The generator as it was when the present request began, and the request's number."""
        return {}, [{"generator": self._before, "request": self.number}]

    def set_state(self, arrays: Mapping[str, NDArray[Any]], generators: Sequence[Mapping[str, Any]]) -> None:
        """Makes the next reset begin the request anew that was being decoded when the state was copied.

        Raises:
            KeyError: if it is the state of another kind of environment.
        """
        del arrays
        (state,) = generators
        self._current = None
        self.number = int(state["request"])
        self.live.np_random, _ = np_random(0)
        self.live.np_random.bit_generator.state = dict(state["generator"])
