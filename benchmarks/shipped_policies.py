# SPDX-License-Identifier: Apache-2.0
"""Fits the policies that come with SpecKV: supervised, token by token, one for each shipped cost table.

    python -m benchmarks.shipped_policies

As in `experiment=zoo`, each is fitted to all train prompts with the defaults of `configs/agent/survival_stopping.yaml`.
"""

import argparse
import logging
from dataclasses import replace

from speckv.agents.registry import TrainingData, default_settings, make_controller
from speckv.export import Source, make_policy
from speckv.runtime.shipped import shipped_policy

AGENT, SEED = "survival_stopping", 0
RECORDINGS = {
    "cpu-2core": "qwen2.5-coder-greedy",
    "cpu-2core-avx2": "qwen2.5-coder-greedy",
    "cpu-2core-lookup": "qwen2.5-coder-lookup-greedy",
    "rtx3090-paper": "qwen2.5-coder-greedy",
}
"""Cost table -> recordings."""
logger = logging.getLogger(__name__)


def fit(cost: str) -> None:
    """Fits and stores the policy of a cost table."""
    recordings, folder = RECORDINGS[cost], shipped_policy(cost)
    folder.mkdir(parents=True, exist_ok=True)
    source = Source.find(str(folder), cost=cost, traces=recordings)
    data = TrainingData(train=source.traces.select(split="train"), cost=source.cost, seed=SEED)
    policy = make_policy(source, make_controller(AGENT, default_settings(AGENT), data))
    facts = {**policy.trained_on, "agent": AGENT, "seed": SEED, "traces": recordings}
    replace(policy, trained_on=facts).save(folder)
    logger.info("wrote %s", folder)


def main() -> None:
    """Fits the policies of some cost tables."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cost", nargs="*", choices=list(RECORDINGS), default=list(RECORDINGS))
    for cost in parser.parse_args().cost:
        fit(cost)


if __name__ == "__main__":
    main()
