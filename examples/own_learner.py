# SPDX-License-Identifier: Apache-2.0
"""An online learner of one's own: epsilon-greedy over fixed gammas, by tokens a second.

    speckv evaluate agents=[own_learner:EpsilonGreedy,ucb1]
    speckv train agent=own_learner:EpsilonGreedy agent.epsilon=0.02

Run both in the folder of this file. `learns = True` makes it an online learner: it is trained on the train prompts, one
request after the other, and goes on learning in the comparison and, exported, in a decode loop.
"""

from collections.abc import Mapping

import numpy as np

from speckv.types import StepOutcome


class EpsilonGreedy:
    """Keeps tokens and seconds of each gamma, and mostly chooses the best ratio."""

    name, learns = "epsilon-greedy", True

    def __init__(self, epsilon: float = 0.02, gamma_max: int = 8) -> None:
        self.epsilon, self.rng = epsilon, np.random.default_rng(0)
        self.tokens, self.seconds = np.ones(gamma_max + 1), np.full(gamma_max + 1, 1e-3)  # optimistic: tries each first
        self.gamma = 0

    def act(self, observation: np.ndarray) -> int:  # noqa: ARG002 - not needed here
        """Returns gamma."""
        rates = self.tokens / self.seconds
        explores = self.rng.random() < self.epsilon
        self.gamma = int(self.rng.integers(len(rates)) if explores else rates.argmax())
        return self.gamma

    def learn(self, outcome: StepOutcome) -> None:
        """Adds a step to its gamma's sums."""
        self.tokens[self.gamma] += outcome.num_emitted
        self.seconds[self.gamma] += outcome.seconds

    def get_arrays(self) -> Mapping[str, np.ndarray]:
        """Returns what was learned."""
        return {"tokens": self.tokens, "seconds": self.seconds}

    def set_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restores what `get_arrays` returned."""
        self.tokens, self.seconds = np.array(arrays["tokens"]), np.array(arrays["seconds"])
