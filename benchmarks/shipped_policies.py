# SPDX-License-Identifier: Apache-2.0
"""Fits the policies that come with SpecKV: supervised, token by token, with times that they learn while decoding.

    python -m benchmarks.shipped_policies

Each is fitted to all train prompts with the defaults of `configs/agent/self_timed.yaml`. The cost table serves only the
fallback, its best fixed gammas.
"""

import argparse
import logging
from dataclasses import replace

from speckv.agents.registry import TrainingData, default_settings, make_controller
from speckv.export import Source, make_policy
from speckv.export.source import COST
from speckv.runtime.shipped import BASE, LOOKUP, shipped_policy

AGENT, SEED = "self_timed", 0
RECORDINGS = {BASE: ("qwen2.5-coder-greedy", COST), LOOKUP: ("qwen2.5-coder-lookup-greedy", "cpu-2core-lookup")}
"""Policy -> recordings, cost table of the fallback."""
logger = logging.getLogger(__name__)


def fit(name: str) -> None:
    """Fits and stores one of the policies."""
    (recordings, cost), folder = RECORDINGS[name], shipped_policy(name)
    folder.mkdir(parents=True, exist_ok=True)
    source = Source.find(str(folder), cost=cost, traces=recordings)
    data = TrainingData(train=source.traces.select(split="train"), cost=source.cost, seed=SEED)
    policy = make_policy(source, make_controller(AGENT, default_settings(AGENT), data))
    # Its inputs mean the same at any size of vocabulary; a policy that states one refuses others.
    unstated = ("cost", "cost_sha256", "cost_kind", "vocab_size", "tokenizer_sha256")
    facts = {key: value for key, value in policy.trained_on.items() if key not in unstated}
    replace(policy, trained_on={**facts, "agent": AGENT, "seed": SEED, "traces": recordings}).save(folder)
    logger.info("wrote %s", folder)


def main() -> None:
    """Fits the policies."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(RECORDINGS))
    for name in parser.parse_args().names:
        fit(name)


if __name__ == "__main__":
    main()
