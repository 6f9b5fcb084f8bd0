# SPDX-License-Identifier: Apache-2.0
"""TapOut: a bandit whose arms are stopping rules, none of them tuned."""

import math

import numpy as np

from agents.bandits.base import Bandit
from agents.bandits.settings import TapOutSettings
from agents.bandits.stopping_arms import make_rules
from speckv.cost.times import StepTimes
from speckv.types import BoolArray, FloatArray, StepOutcome


def blended_reward(num_accepted: int, num_drafted: int, gamma_max: int) -> float:
    """Half the share of the draft that was accepted, half the share of the longest possible draft.

    >>> blended_reward(4, 8, 16)
    0.375
    """
    return 0.5 * num_accepted / num_drafted + 0.5 * num_accepted / gamma_max


class TapOut(Bandit):
    """Follows one stopping rule a request, the one with the greatest mean + width * sqrt(2 ln t / n), and caps at 16.

    Every step of the request gives the rule's mean a reward in [0, 1], 0.5 A / g + 0.5 A / gamma_max for A of g drafted
    tokens accepted: neither time nor any threshold is in it. n and t count steps. Plain decoding is no arm.

    Attributes:
        rules: The arms: max-confidence, SVIP, AdaEDL, entropy difference, margin.
        counts: Shape [compressions, rules]; steps taken.
        means: The same shape; their mean reward.

    Source:
        Sridhar et al. 2025, arXiv:2511.02017. Verified in its abstract and in public summaries: a bandit that selects
        among training-free stopping rules, a margin among them; UCB1 at sequence level, and other bandits; feedback
        from each drafting round; a reward that blends accepted length and rate; nothing tuned. Not verified, our
        reading: the other four rules, the weights 0.5, the thresholds 0.8 (confidence), 0.2 (entropy difference) and
        0.2 (margin), the constants of SVIP and AdaEDL (those of their own sources), one bandit for each compression,
        and what a sequence is: a request here; `level: step` chooses anew for every drafted sequence.
    """

    learned = ("counts", "means")
    of_request = ("_last", "_rule", "rules")

    def __init__(self, settings: TapOutSettings, times: StepTimes, seed: int) -> None:
        super().__init__("tapout", (settings.gamma_max,), times, seed=seed)
        self.settings = settings
        self.rules = make_rules(settings)
        self.counts = np.zeros((len(times.compressions), len(self.rules)))
        self.means = np.zeros_like(self.counts)
        self._rule: int | None = None

    def reset(self) -> None:
        """Begins a request: a rule is chosen at its first step."""
        super().reset()
        self._rule = None
        for rule in self.rules:
            rule.reset()

    def act(self, observation: FloatArray) -> int:
        """Returns the cap, having chosen a rule if it is time to."""
        compression = int(self.times.which(observation[np.newaxis])[0])
        if self._rule is None or self.settings.level == "step":
            self._rule = self.choose(compression, observation)
        self._last = compression, self._rule, observation.copy()
        return int(self.arms[0])

    def choose(self, compression: int, observation: FloatArray) -> int:
        """Tries every rule once, then follows the bound."""
        del observation
        counts = self.counts[compression]
        untried = np.flatnonzero(counts == 0)
        if len(untried):
            return int(untried[0])
        bonus = self.settings.width * np.sqrt(2 * math.log(counts.sum()) / counts)
        return int((self.means[compression] + bonus).argmax())

    def go_on(self, observation: FloatArray) -> bool:
        """Returns whether the request's rule drafts another token."""
        return bool(self.go_on_batch(observation[np.newaxis])[0])

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """Returns the same for each row, all under the rule that was chosen last."""
        return self.rules[self._rule or 0].go_on_batch(observations)

    def learn(self, outcome: StepOutcome) -> None:
        """Learns, and lets the rule that drafted remember the step, which is no learning: it forgets the request."""
        if self._last is not None and outcome.num_drafted:
            self.rules[self._last[1]].learn(outcome)
        super().learn(outcome)

    def update(self, compression: int, arm: int, observation: FloatArray, outcome: StepOutcome) -> None:
        """Takes a step that drafted anything into the mean of its rule."""
        del observation
        if not outcome.num_drafted:
            return
        reward = blended_reward(outcome.num_accepted, outcome.num_drafted, int(self.arms[0]))
        self.counts[compression, arm] += 1
        self.means[compression, arm] += (reward - self.means[compression, arm]) / self.counts[compression, arm]
