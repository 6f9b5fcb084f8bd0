# SPDX-License-Identifier: Apache-2.0
"""A rule of one's own, compared with the best fixed gamma on recorded prompts.

In Python:                                  python examples/own_rule.py
By command, in the folder of this file:     speckv evaluate agents=[own_rule:Cautious,svip]
Trained run, exported afterwards:           speckv train agent=own_rule:Cautious agent.threshold=0.6
"""

import numpy as np

from speckv.agents.own import adapt, feature
from speckv.cost import CostTable
from speckv.evaluation import compare
from speckv.traces import TraceSet, find_traces

CONFIDENCE, ACCEPTANCE = feature("token_confidence"), feature("acceptance_ema")


class Cautious:
    """Drafts while the draft is confident, more cautiously where few tokens were accepted lately."""

    name = "cautious"

    def __init__(self, threshold: float = 0.6) -> None:
        self.threshold = threshold

    def act(self, observation: np.ndarray) -> int:  # noqa: ARG002 - not needed here
        """Returns the most tokens to draft."""
        return 12

    def go_on(self, observation: np.ndarray) -> bool:
        """Returns whether to draft another token."""
        return bool(observation[CONFIDENCE] > self.threshold + 0.2 * (1 - observation[ACCEPTANCE]))


if __name__ == "__main__":
    traces = TraceSet.load(find_traces("qwen2.5-coder-greedy")).select(compressions=["fp16"])
    comparison = compare(
        train=traces.select(split="train"),
        test=traces.select(split="test"),
        cost=CostTable.load("cpu-2core"),
        controllers=[adapt(Cautious())],
        num_resamples=1000,
    )
    row = comparison.group("fp16").row("cautious").speedup_vs_best_fixed
    print(f"best fixed gamma {comparison.best_fixed_gammas['fp16']}, {comparison.setting.test_prompts} test prompts")
    print(f"cautious: x best fixed {row.estimate:.3f} [{row.low:.3f}, {row.high:.3f}]")
