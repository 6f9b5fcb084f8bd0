# SPDX-License-Identifier: Apache-2.0
"""An exported policy inside transformers, beside what transformers does by itself, in one process.

    python -m benchmarks.in_transformers --prompts TEST.jsonl --train TRAIN.jsonl --weights FOLDER \
        --out benchmarks/results/in-transformers.json

Arms: plain `generate`; assisted generation at its default, with its heuristic, at the best constant; the policy in it
by `control`; the policy in our engine by `custom_generate`. The constant is the one of 1 to 8 with which assisted
generation itself decodes train prompts fastest. Every prompt is decoded by all arms, in rotating order. Seconds are
those of whole calls, prefill included. transformers' arms and `control` run on the layers that it comes with,
`custom_generate` and the arms "on our layers" on prepared models. Whether scikit-learn is installed decides what
transformers' default does: with it the confidence threshold adapts.
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
from benchmarks.against_transformers import (
    ON_OUR_LAYERS,
    THEIRS,
    THEIRS_ASSISTED,
    assisted,
    assisted_at,
    generated,
    on_stock_layers,
    theirs_assisted,
)
from benchmarks.arms import (
    NUM_RESAMPLES,
    BestConstant,
    Decode,
    Runs,
    add_constant_arguments,
    as_ratio,
    run_arms,
    telling,
    tune,
)
from speckv.errors import ConfigError
from speckv.evaluation.bootstrap import resample_counts
from speckv.integrations.transformers import control, custom_generate, prepare
from speckv.models import ModelPair
from speckv.models.dtypes import dtype_name
from speckv.profiling.machine import describe_machine
from speckv.profiling.prompts import Prompt, first_of_each, read_prompts
from speckv.runtime import Policy, load
from speckv.runtime.constant import ConstantGamma

logger = logging.getLogger(__name__)
GAMMAS = tuple(range(1, 9))
"""transformers' own loop cannot draft nothing, and plain decoding is an arm of its own."""


def controlled(pair: ModelPair, policy: Policy, max_new_tokens: int) -> Decode:
    """Assisted generation under a policy."""
    inner = generated(pair, max_new_tokens, assistant_model=pair.draft.hf)

    def decode(ids: Sequence[int], name: str) -> list[int]:
        with control(pair.target.hf, pair.draft.hf, policy):
            return inner(ids, name)

    return decode


def engine(pair: ModelPair, policy: Policy, max_new_tokens: int) -> Decode:
    """Our engine behind `generate`."""
    ours = {"custom_generate": custom_generate, "draft_model": pair.draft.hf, "policy": policy}
    return generated(pair, max_new_tokens, **ours)


def choose(paths: Sequence[str], split: str, per_task: int) -> list[Prompt]:
    """The first prompts of each task.

    Raises:
        ConfigError: if there are none.
    """
    found = first_of_each([p for p in read_prompts(paths) if p.split == split], per_task)
    if not found:
        raise ConfigError(f"Expected {split} prompts in {', '.join(paths)}, found none. Name files that hold some.")
    return found


def best_constant(pair: ModelPair, options: argparse.Namespace) -> BestConstant:
    """The constant that was given, or the best one in transformers' own loop on train prompts."""
    if options.gamma is not None:
        return BestConstant(gamma=options.gamma)
    found = tune(
        {gamma: assisted_at(pair, gamma, options.max_new_tokens) for gamma in options.gammas},
        {p.prompt_id: pair.encode(p.text) for p in choose(options.train, "train", options.train_per_task)},
        on_prompt=lambda name, _: logger.info("tuned on %s", name),
    )
    logger.info("best constant: %d of %s", found.gamma, {g: round(s, 1) for g, s in found.seconds.items()})
    return found


def make_arms(pair: ModelPair, stock: ModelPair, gamma: int, options: argparse.Namespace) -> dict[str, Decode]:
    """Name -> how to decode.

    Args:
        pair: Decodes.
        stock: The same on transformers' own layers.
        gamma: The best constant.
        options: The command line.
    """
    most = options.max_new_tokens
    best = Policy.of(ConstantGamma(gamma))
    ways = {
        "control": (controlled, stock),
        f"control {ON_OUR_LAYERS}": (controlled, pair),
        "custom_generate": (engine, pair),
    }
    heuristic = {
        "num_assistant_tokens_schedule": "heuristic_transient",
        "num_assistant_tokens": 5,
        "assistant_confidence_threshold": 0.0,
    }
    return {
        THEIRS: generated(stock, most),
        f"{THEIRS} {ON_OUR_LAYERS}": generated(pair, most),
        **theirs_assisted(stock, gamma, most),
        f"{THEIRS_ASSISTED}, heuristic": assisted(stock, most, **heuristic),
        **{f"{way}, {gamma}": make(on, best, most) for way, (make, on) in ways.items() if options.constants},
        # A policy each: those that learn times would mix them up.
        **{f"{way}, policy": make(on, load(options.policy), most) for way, (make, on) in ways.items()},
    }


def render(
    runs: Runs, prompts: Sequence[Prompt], *, pair: ModelPair, policy: Policy, best: BestConstant, max_new_tokens: int
) -> str:
    """The result so far, as JSON.

    Args:
        runs: What was measured.
        prompts: Test prompts, in order; the last ones may be yet to come.
        pair: Decoded.
        policy: Ours.
        best: The constant.
        max_new_tokens: Of each text.
    """
    done = len(runs.texts[THEIRS])
    counts = resample_counts([p.task for p in prompts[:done]], NUM_RESAMPLES, 0)
    plain, theirs_best = (np.array(runs.seconds[n]) for n in (THEIRS, f"{THEIRS_ASSISTED}, {best.gamma}"))
    content = {
        "what": "whole calls, prefill included, arms interleaved in one process",
        "pair": qwen.NAME,
        "compression": pair.config.compression,
        "dtype": dtype_name(pair.target.dtype),
        "max_new_tokens": max_new_tokens,
        "policy": policy.name,
        "policy_trained_on": dict(policy.trained_on),
        "prompts": [p.prompt_id for p in prompts[:done]],
        "best_constant": best.as_json(),
        "arms": {
            name: {
                "tokens_per_s": runs.tokens_per_s(name),
                "seconds": runs.seconds[name],
                "prompts_with_another_text": runs.other_texts(name, THEIRS),
                "speedup_over_plain": as_ratio(plain, np.array(runs.seconds[name]), counts),
                "speedup_over_their_best_constant": as_ratio(theirs_best, np.array(runs.seconds[name]), counts),
            }
            for name in runs.seconds
        },
        "scikit_learn_installed": is_sklearn_available(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": describe_machine(pair.target.device),
    }
    return json.dumps(content, indent=1) + "\n"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", nargs="+", required=True, help="test prompts")
    parser.add_argument("--per-task", type=int, default=3)
    parser.add_argument("--weights", type=Path, required=True, help="folder with the pair's GGUF files")
    parser.add_argument("--policy", default="shipped", help="a policy's folder, or `shipped`")
    add_constant_arguments(parser, GAMMAS)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--compression", default="fp16", help="of the target")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--constants", action="store_true", help="also the best constant, through both ways of ours")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if min([*options.gammas, *([] if options.gamma is None else [options.gamma])]) < 1:
        parser.error("expected constants of at least 1 token: transformers cannot draft 0, and plain is an arm already")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison and writes JSON."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers.logging.set_verbosity_error()
    options = parse(arguments)
    prompts = choose(options.prompts, "test", options.per_task)
    pair = qwen.load_qwen(options.weights, dtype=options.dtype, compression=options.compression)
    prepare(pair.target.hf, pair.draft.hf)
    stock = on_stock_layers(pair)
    policy, best = load(options.policy), best_constant(stock, options)
    arms = make_arms(pair, stock, best.gamma, options)

    def report(runs: Runs) -> str:
        most = options.max_new_tokens
        return render(runs, prompts, pair=pair, policy=policy, best=best, max_new_tokens=most)

    encoded = {p.prompt_id: pair.encode(p.text) for p in prompts}
    runs = run_arms(arms, encoded, on_prompt=telling(report, options.out))
    logger.info(report(runs))


if __name__ == "__main__":
    main()
