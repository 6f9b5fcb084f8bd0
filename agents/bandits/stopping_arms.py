# SPDX-License-Identifier: Apache-2.0
"""The stopping rules that TapOut chooses among: published ones at their own constants, and two simple tests more."""

import numpy as np

from agents.bandits.settings import TapOutSettings
from agents.rules.adaedl import AdaEdl, AdaEdlSettings
from agents.rules.base import ENTROPY, StoppingRule
from agents.rules.llama_cpp import LlamaCpp, LlamaCppSettings
from agents.rules.svip import Svip, SvipSettings
from speckv.observation import STOPPING_SCHEMA, drafted_so_far
from speckv.types import BoolArray, FloatArray

_MARGIN = STOPPING_SCHEMA.index("token_margin")


class EntropyRise(StoppingRule):
    """Stops behind a token where the draft has become less sure: sqrt(H) - sqrt(H of the token before) > rise.

    The first token of a step has none before it, so drafting always goes on behind it.

    Args:
        gamma_max: Most tokens of a draft.
        rise: In square roots of nats.
    """

    def __init__(self, gamma_max: int, rise: float) -> None:
        super().__init__("entropy-rise", gamma_max)
        self.rise = rise
        self.reset()

    def start(self, num_requests: int) -> None:
        """Begins requests with no token before."""
        super().start(num_requests)
        self._before = np.zeros(num_requests, np.float32)

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """Goes on where entropy has not risen; it is asked behind every drafted token, one after the other."""
        root = np.sqrt(observations[:, ENTROPY])
        calm: BoolArray = (drafted_so_far(observations) <= 1) | (root - self._before <= self.rise)
        self._before = root
        return calm


class LeastMargin(StoppingRule):
    """Stops behind a token whose top-1 probability is not far enough above the top-2 probability.

    Args:
        gamma_max: Most tokens of a draft.
        margin: Least difference to go on.
    """

    def __init__(self, gamma_max: int, margin: float) -> None:
        super().__init__("margin", gamma_max)
        self.margin = margin

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """Goes on where the newest token stands out."""
        clear: BoolArray = observations[:, _MARGIN] >= self.margin
        return clear


def make_rules(settings: TapOutSettings) -> tuple[StoppingRule, ...]:
    """The rules, in the order in which they are tried first."""
    most = settings.gamma_max
    confident = LlamaCpp(LlamaCppSettings(n_max=most, p_min=settings.confidence))
    confident.name = "max-confidence"
    return (
        confident,
        Svip(SvipSettings(gamma_max=most)),
        AdaEdl(AdaEdlSettings(gamma_max=most)),
        EntropyRise(most, settings.entropy_rise),
        LeastMargin(most, settings.margin),
    )
