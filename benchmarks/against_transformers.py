# SPDX-License-Identifier: Apache-2.0
"""Our decode loop beside transformers' own, plain and with the same draft, in one process.

    python -m benchmarks.against_transformers --prompts test.jsonl --weights FOLDER --gamma 2 --controllers runs/mine \
        --out benchmarks/results/against-transformers.json

Every prompt is decoded by all arms, in an order that rotates. Seconds are those of whole calls, prefill and all
bookkeeping included. Texts are compared with transformers' plain one, token by token. Transformers runs on the layers
that it comes with, and once more on ours, which a CPU may multiply faster by (`speckv.models.linear`): beside that arm
we differ by the loop alone. The report is rewritten after each prompt.
"""

import argparse
import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from benchmarks import qwen
from benchmarks.arms import NUM_RESAMPLES, Decode, Runs, as_ratio, run_arms, telling
from speckv.cost import CostTable
from speckv.decoding import Engine, RequestContext, generate
from speckv.evaluation.bootstrap import resample_counts
from speckv.models import ModelPair
from speckv.models.device import without_plans
from speckv.models.dtypes import dtype_name
from speckv.models.linear import stock_layers
from speckv.profiling.machine import describe_machine
from speckv.profiling.prompts import Prompt, first_of_each, read_prompts
from speckv.runtime.constant import ConstantGamma
from speckv.runtime.policy import load_controller
from speckv.types import Controller

logger = logging.getLogger(__name__)
THEIRS, THEIRS_ASSISTED, ON_OUR_LAYERS = "transformers", "transformers, assisted", "on our layers"
WHAT = (
    "whole calls, prefill included, arms interleaved in one process; transformers on the layers that it comes with "
    f"but where an arm says {ON_OUR_LAYERS}"
)


def generated(pair: ModelPair, max_new_tokens: int, **options: object) -> Decode:
    """Transformers' `generate`, greedy."""

    def decode(ids: Sequence[int], _: str) -> list[int]:
        tokens = torch.tensor([list(ids)], device=pair.target.device)
        with without_plans(pair.target.device):  # as ours runs: a plan for each new length would be timed otherwise
            output = pair.target.hf.generate(  # type: ignore[operator]
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=sorted(pair.eos_token_ids),
                pad_token_id=min(pair.eos_token_ids, default=0),
                **options,
            )
        found: list[int] = output[0, len(ids) :].tolist()
        return found

    return decode


def on_stock_layers(pair: ModelPair) -> ModelPair:
    """A copy of a pair with the layers that transformers comes with; the pair itself on a GPU, where it has those."""
    if pair.target.device.type != "cpu":
        return pair
    copies = []
    for model in (pair.target, pair.draft):
        copied = model.sharing(copy.deepcopy(model.hf))
        stock_layers(copied.hf)
        copies.append(copied)
    return replace(pair, target=copies[0], draft_model=copies[1])


def assisted(pair: ModelPair, max_new_tokens: int, **settings: object) -> Decode:
    """Transformers' assisted generation with our draft; `settings` tell the draft."""
    inner = generated(pair, max_new_tokens, assistant_model=pair.draft.hf)

    def decode(ids: Sequence[int], name: str) -> list[int]:
        for key, value in settings.items():
            setattr(pair.draft.hf.generation_config, key, value)
        return inner(ids, name)

    return decode


def ours(engine: Engine, controller: Controller, context: RequestContext, max_new_tokens: int) -> Decode:
    """Our loop."""

    def decode(ids: Sequence[int], name: str) -> list[int]:
        run = generate(engine, ids, controller, context=context, max_new_tokens=max_new_tokens, request=name)
        return list(run.tokens)

    return decode


def assisted_at(pair: ModelPair, gamma: int, max_new_tokens: int, *, threshold: float = 0.0) -> Decode:
    """Transformers' assisted generation with one draft length; a threshold of 0 lets no doubt end a draft earlier."""
    return assisted(
        pair,
        max_new_tokens,
        num_assistant_tokens=gamma,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=threshold,
    )


def theirs_assisted(pair: ModelPair, gamma: int, max_new_tokens: int) -> dict[str, Decode]:
    """Transformers' assisted generation: with a fixed draft length, and at its default."""
    return {
        f"{THEIRS_ASSISTED}, {gamma}": assisted_at(pair, gamma, max_new_tokens),
        f"{THEIRS_ASSISTED}, default": assisted_at(pair, 20, max_new_tokens, threshold=0.4),
    }


class Engines(NamedTuple):
    """Ours, with the draft and without: one that decodes plainly reads no prompt with a draft."""

    drafting: Engine
    alone: Engine


def make_engines(pair: ModelPair, longest: int) -> Engines:
    """Our engines, with all that CUDA graphs hold captured before anything is timed.

    Args:
        pair: Target and draft.
        longest: Prompt and output of any request, in tokens.
    """
    engines = Engines(*(Engine(pair.target, draft, eos_token_ids=pair.eos_token_ids) for draft in (pair.draft, None)))
    for engine in engines:
        engine.capture_ahead(longest)
    return engines


def make_arms(pair: ModelPair, options: argparse.Namespace, longest: int) -> dict[str, Decode]:
    """Name -> how to decode; nothing is captured later for requests of up to `longest` tokens, prompt and output."""
    table = CostTable.load(options.cost)
    context = RequestContext(compression=options.compression, cost_ratio=table.cost_ratio(options.compression))
    engines = make_engines(pair, longest)
    mine = partial(ours, engines.drafting, context=context, max_new_tokens=options.max_new_tokens)
    stock = on_stock_layers(pair)
    arms = {
        THEIRS: generated(stock, options.max_new_tokens),
        "ours, plain": ours(engines.alone, ConstantGamma(0), context, options.max_new_tokens),
        f"ours, {options.gamma}": mine(ConstantGamma(options.gamma)),
        **theirs_assisted(stock, options.gamma, options.max_new_tokens),
        f"{THEIRS_ASSISTED}, {options.gamma}, {ON_OUR_LAYERS}": assisted_at(
            pair, options.gamma, options.max_new_tokens
        ),
    }
    for path in options.controllers:
        controller = load_controller(path)
        arms[f"ours, {controller.name}"] = mine(controller)
    return arms


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", nargs="+", required=True)
    parser.add_argument("--per-task", type=int, default=3)
    parser.add_argument("--weights", type=Path, required=True, help="folder with the pair's GGUF files")
    parser.add_argument(
        "--pair", choices=["qwen", "smol"], default="qwen", help="smol drafts with its own first layers"
    )
    parser.add_argument("--gamma", type=int, required=True, help="the best fixed gamma, tuned on train prompts")
    parser.add_argument("--controllers", nargs="*", default=[])
    parser.add_argument("--cost", default="cpu-2core")
    parser.add_argument("--compression", default="fp16")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


def main() -> None:
    """Runs the comparison and writes JSON."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers.logging.set_verbosity_error()
    options = parse()
    if options.pair == "smol":
        pair = qwen.load_smol(options.weights, dtype=options.dtype)
    else:
        pair = qwen.load_qwen(options.weights, dtype=options.dtype, compression=options.compression)
    prompts = [p for p in read_prompts(options.prompts) if p.split == "test"]
    prompts = first_of_each(prompts, options.per_task)
    encoded = {p.prompt_id: pair.encode(p.text) for p in prompts}
    arms = make_arms(pair, options, longest=max(map(len, encoded.values())) + options.max_new_tokens)
    about = {
        "what": WHAT,
        "pair": qwen.SMOL_NAME if options.pair == "smol" else qwen.NAME,
        "compression": options.compression,
        "dtype": dtype_name(pair.target.dtype),
        "max_new_tokens": options.max_new_tokens,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": describe_machine(pair.target.device),
    }

    def report(runs: Runs) -> str:
        done = prompts[: len(runs.seconds[THEIRS])]
        return json.dumps(about | compare(runs, list(arms), done, options.gamma), indent=1) + "\n"

    runs = run_arms(arms, encoded, on_prompt=telling(report, options.out))
    logger.info(report(runs))


def compare(runs: Runs, names: Sequence[str], prompts: Sequence[Prompt], gamma: int) -> dict[str, Any]:
    """What arms did on the same prompts: rates, and ratios of total seconds.

    Args:
        runs: Of all arms.
        names: Arms, in the report's order.
        prompts: Those that have been decoded.
        gamma: At which our loop and theirs are held against each other.
    """
    counts = resample_counts([p.task for p in prompts], NUM_RESAMPLES, 0)
    seconds = {name: np.array(runs.seconds[name]) for name in names}
    same = f"{THEIRS_ASSISTED}, {gamma}"
    return {
        "prompts": [p.prompt_id for p in prompts],
        "arms": {
            name: {
                "tokens_per_s": runs.tokens_per_s(name),
                "seconds": runs.seconds[name],
                "prompts_with_another_text": runs.other_texts(name, THEIRS),
                "speedup_over_transformers_plain": as_ratio(seconds[THEIRS], seconds[name], counts),
            }
            for name in names
        },
        "ours_over_assisted_at_the_same_gamma": as_ratio(seconds[same], seconds[f"ours, {gamma}"], counts),
        "ours_over_assisted_on_our_layers": as_ratio(
            seconds[f"{same}, {ON_OUR_LAYERS}"], seconds[f"ours, {gamma}"], counts
        ),
    }


if __name__ == "__main__":
    main()
