# SPDX-License-Identifier: Apache-2.0
"""TapOut: a bandit whose arms are stopping rules, none of them tuned."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from speckv.agents.bandits.base import Bandit
from speckv.agents.building import FROM_ZERO, SHARE, require_ranges
from speckv.agents.rules.adaedl import AdaEdl, AdaEdlSettings
from speckv.agents.rules.base import ENTROPY, MARGIN, SignalRule, StoppingRule
from speckv.agents.rules.llama_cpp import LlamaCpp, LlamaCppSettings
from speckv.agents.rules.svip import Svip, SvipSettings
from speckv.cost.times import StepTimes
from speckv.errors import ConfigError
from speckv.observation import drafted_so_far
from speckv.types import GAMMA_MAX, BoolArray, FloatArray, StepOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class TapOutSettings:
    """Hyper-parameters; `level` is "request" or "step", `entropy_rise` the greatest rise of the entropy's root."""

    gamma_max: int
    level: str
    width: float
    confidence: float
    entropy_rise: float
    margin: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.level not in ("request", "step"):
            raise ConfigError(f"Expected agent.level request or step, got {self.level!r}.")
        require_ranges(self, gamma_max=(1, GAMMA_MAX), width=FROM_ZERO, entropy_rise=FROM_ZERO)
        require_ranges(self, confidence=SHARE, margin=SHARE)


class EntropyRise(StoppingRule):
    """Stops behind a token with sqrt(H) - sqrt(H of the token before) > rise; never behind the first of a step."""

    def __init__(self, gamma_max: int, rise: float) -> None:
        super().__init__("entropy-rise", gamma_max)
        self.rise = rise
        self.reset()

    def start(self, num_requests: int) -> None:
        """Begins requests with no token before."""
        self._before = np.zeros(num_requests, np.float32)

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """Goes on where entropy has not risen; called behind every drafted token in turn."""
        root = np.sqrt(observations[:, ENTROPY])
        calm: BoolArray = (drafted_so_far(observations) <= 1) | (root - self._before <= self.rise)
        self._before = root
        return calm


class LeastMargin(SignalRule):
    """Stops behind a token whose top-1 minus top-2 probability is below `margin`."""

    signal = MARGIN

    def __init__(self, gamma_max: int, margin: float) -> None:
        super().__init__("margin", gamma_max)
        self.margin = margin

    def passes(self, values: Any) -> Any:
        """Whether the margin is large enough."""
        return values >= self.margin


def make_rules(settings: TapOutSettings) -> tuple[StoppingRule, ...]:
    """The rules, in the order in which they are tried first; published ones with their papers' constants."""
    most = settings.gamma_max
    confident = LlamaCpp(LlamaCppSettings(n_max=most, p_min=settings.confidence))
    confident.name = "max-confidence"
    return (
        confident,
        Svip(SvipSettings(gamma_max=most, scale=0.15, threshold=0.3)),
        AdaEdl(
            AdaEdlSettings(
                gamma_max=most,
                scale=0.2,
                threshold=0.5,
                target=0.9,
                rate_decay=0.5,
                threshold_decay=0.9,
                step=0.01,
            )
        ),
        EntropyRise(most, settings.entropy_rise),
        LeastMargin(most, settings.margin),
    )


def blended_reward(num_accepted: int, num_drafted: int, gamma_max: int) -> float:
    """Half the share of the draft that was accepted, half the share of the longest possible draft.

    >>> blended_reward(4, 8, 16)
    0.375
    """
    return 0.5 * num_accepted / num_drafted + 0.5 * num_accepted / gamma_max


class TapOut(Bandit):
    """Follows the rule with the greatest mean + width * sqrt(2 ln t / n) for a request, and caps at 16.

    Every step of the request gives the rule's mean a reward in [0, 1], 0.5 A / g + 0.5 A / gamma_max for A of g drafted
    tokens accepted: it uses neither time nor thresholds. n and t count steps. Plain decoding is no arm.

    Source:
        Sridhar et al. 2025, arXiv:2511.02017. Verified in its abstract and in public summaries: a bandit that selects
        among training-free stopping rules, a margin among them; UCB1 at sequence level, and other bandits; feedback
        from each drafting round; a reward that blends accepted length and rate; nothing tuned. Not verified, our
        reading: the other four rules, the weights 0.5, the thresholds 0.8 (confidence), 0.2 (entropy difference) and
        0.2 (margin), the constants of SVIP and AdaEDL (those of their own sources), one bandit for each compression,
        and what a sequence is: a request here; `level: step` chooses anew for every drafted sequence.
    """

    kind = "tapout"
    settings_class = TapOutSettings
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
        """Returns the cap; chooses a rule at a request's first step, or at every one."""
        compression = int(self.times.which(observation[np.newaxis])[0])
        if self._rule is None or self.settings.level == "step":
            self._rule = self.choose(compression, observation)
        self._last = compression, self._rule, observation.copy()
        return int(self.arms[0])

    def choose(self, compression: int, observation: FloatArray) -> int:
        """Returns the first rule that was never tried, or the one of the greatest bound."""
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
        """As `go_on` for each row, all under the rule that was chosen last."""
        return self.rules[self._rule or 0].go_on_batch(observations)

    def learn(self, outcome: StepOutcome) -> None:
        """Learns; the rule that drafted remembers the step also where the bandit is frozen, until the request ends."""
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
