# SPDX-License-Identifier: Apache-2.0
"""An exported policy inside transformers, beside what transformers does by itself, in one process.

    python -m benchmarks.in_transformers --prompts test.jsonl --weights FOLDER --gamma 4 --policy mine.speckv \
        --out benchmarks/results/in-transformers.json

Arms: plain `generate`; assisted generation at its default, with its heuristic, at the best constant; the policy in it
by `control`; the policy in our engine by `custom_generate`. Every prompt is decoded by all arms, in rotating order.
Seconds are those of whole calls, prefill included. transformers' arms and `control` run on the layers that it comes
with, `custom_generate` on prepared models. Whether scikit-learn is installed decides what transformers' default does:
with it the confidence threshold adapts.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.utils.import_utils import is_sklearn_available

from benchmarks import qwen
from benchmarks.against_transformers import THEIRS, THEIRS_ASSISTED, assisted, generated, theirs, theirs_assisted
from benchmarks.arms import NUM_RESAMPLES, Decode, Runs, as_ratio, run_arms
from speckv.evaluation.bootstrap import resample_counts
from speckv.files import write_atomically
from speckv.integrations.transformers import control, custom_generate, prepare
from speckv.models import ModelPair
from speckv.models.dtypes import dtype_name
from speckv.profiling.machine import describe_machine
from speckv.profiling.prompts import first_of_each, read_prompts
from speckv.runtime import Policy, load
from speckv.runtime.constant import ConstantGamma

logger = logging.getLogger(__name__)


def controlled(pair: ModelPair, policy: Policy, max_new_tokens: int) -> Decode:
    """Assisted generation under a policy."""
    inner = theirs(pair, max_new_tokens, assistant_model=pair.draft.hf)

    def decode(ids: Sequence[int], name: str) -> list[int]:
        with control(pair.target.hf, pair.draft.hf, policy):
            return inner(ids, name)

    return decode


def engine(pair: ModelPair, policy: Policy, max_new_tokens: int) -> Decode:
    """Our engine behind `generate`."""
    ours = {"custom_generate": custom_generate, "draft_model": pair.draft.hf, "policy": policy}
    return generated(pair, max_new_tokens, **ours)


def main() -> None:
    """Runs the comparison and writes JSON."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers.logging.set_verbosity_error()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", nargs="+", required=True)
    parser.add_argument("--per-task", type=int, default=3)
    parser.add_argument("--weights", type=Path, required=True, help="folder with the pair's GGUF files")
    parser.add_argument("--policy", required=True, help="an exported policy's folder")
    parser.add_argument("--gamma", type=int, required=True, help="the best constant, tuned on train prompts")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--constants", action="store_true", help="also the best constant, through both ways of ours")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pair = qwen.load_qwen(options.weights, dtype=options.dtype)
    prepare(pair.target.hf, pair.draft.hf)
    policy, most = load(options.policy), options.max_new_tokens
    best = Policy.of(ConstantGamma(options.gamma))
    ways = {"control": controlled, "custom_generate": engine}
    constants = {f"{w}, {options.gamma}": make(pair, best, most) for w, make in ways.items() if options.constants}
    heuristic = {
        "num_assistant_tokens_schedule": "heuristic_transient",
        "num_assistant_tokens": 5,
        "assistant_confidence_threshold": 0.0,
    }
    arms: dict[str, Decode] = {
        THEIRS: theirs(pair, most),
        **theirs_assisted(pair, options.gamma, most),
        f"{THEIRS_ASSISTED}, heuristic": assisted(pair, most, **heuristic),
        **constants,
        **{f"{way}, {policy.name}": make(pair, policy, most) for way, make in ways.items()},
    }
    prompts = first_of_each([p for p in read_prompts(options.prompts) if p.split == "test"], options.per_task)

    def report(runs: Runs) -> str:
        done = len(runs.texts[THEIRS])
        counts = resample_counts([p.task for p in prompts[:done]], NUM_RESAMPLES, 0)
        plain, best_theirs = (np.array(runs.seconds[n]) for n in (THEIRS, f"{THEIRS_ASSISTED}, {options.gamma}"))
        content = {
            "what": "whole calls, prefill included, arms interleaved in one process",
            "pair": qwen.NAME,
            "dtype": dtype_name(pair.target.dtype),
            "max_new_tokens": most,
            "policy": policy.name,
            "policy_trained_on": dict(policy.trained_on),
            "prompts": [p.prompt_id for p in prompts[:done]],
            "arms": {
                name: {
                    "tokens_per_s": runs.tokens_per_s(name),
                    "seconds": runs.seconds[name],
                    "prompts_with_another_text": runs.other_texts(name, THEIRS),
                    "speedup_over_plain": as_ratio(plain, np.array(runs.seconds[name]), counts),
                    "speedup_over_their_best_constant": as_ratio(best_theirs, np.array(runs.seconds[name]), counts),
                }
                for name in arms
            },
            "fallbacks": dict(policy.warnings),
            "scikit_learn_installed": is_sklearn_available(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "machine": describe_machine(),
        }
        return json.dumps(content, indent=1) + "\n"

    def tell(prompt: str, runs: Runs) -> None:
        logger.info("%s: %s", prompt, ", ".join(f"{n} {runs.seconds[n][-1]:.2f} s" for n in arms))
        if options.out:  # what was measured is kept, however the run ends
            write_atomically(options.out, report(runs))

    runs = run_arms(arms, {p.prompt_id: pair.encode(p.text) for p in prompts}, on_prompt=tell)
    logger.info(report(runs))


if __name__ == "__main__":
    main()
