# SPDX-License-Identifier: Apache-2.0
"""Plays any controller in `SpecKV/DraftStopping-v0`, where an action is to draft a token or to verify."""

import numpy as np

from speckv.envs.draft_stopping import DRAFT, VERIFY
from speckv.observation import SCHEMA, drafted_so_far
from speckv.types import Controller, FloatArray, StoppingController


class TokenByToken:
    """Turns a controller's decisions into actions: the gamma of a step is drafted token by token.

    The environment charges the time of a decision for every action, so a controller that decides once a step pays more
    than in `SpecKV/GammaSelection-v0`. A controller with memory plays one request at a time.
    """

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self._gamma = 0

    def reset(self) -> None:
        """Begins an episode."""
        self.controller.reset()
        self._gamma = 0

    def act(self, observation: FloatArray) -> np.int64:
        """Returns 1 to draft a token or 0 to verify."""
        depth = int(drafted_so_far(observation))
        if depth == 0:
            self._gamma = self.controller.act(observation[: SCHEMA.size])
            return np.int64(DRAFT if self._gamma > 0 else VERIFY)
        if depth >= self._gamma:
            return np.int64(VERIFY)
        if isinstance(self.controller, StoppingController):
            return np.int64(self.controller.go_on(observation))
        return np.int64(DRAFT)
