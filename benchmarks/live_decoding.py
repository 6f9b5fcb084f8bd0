# SPDX-License-Identifier: Apache-2.0
"""Live decoding, arms side by side: plain, one fixed gamma, and controllers.

    python -m benchmarks.live_decoding --prompts test.jsonl --weights FOLDER --controllers shipped runs/mine --gamma 3 \
        --dtype float32 --out benchmarks/results/live-float32.json

Every prompt is decoded by all arms in one process, in turns of one decode step each, so that a slow moment of the
machine falls on all alike. Seconds are decode time: prefill left out, decisions included. Texts are compared token by
token; in 16-bit arithmetic a verify pass of another width can flip a near-tie, after which two texts go different ways:
such prompts are counted and reported. With `--traces NAME` the recorded ones among the prompts are replayed as well, on
the cost table's times, and the report says how far those were off (`benchmarks.prediction_error`).
"""

import argparse
import json
import logging
from collections import defaultdict, deque
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import qwen
from benchmarks.arms import NUM_RESAMPLES, as_ratio
from benchmarks.divergence import first_difference
from benchmarks.prediction_error import encode_as_recorded, errors, require_recorded
from speckv.commands.decode import find_policy
from speckv.cost import CostTable
from speckv.decoding import DecodeStep, Engine, GenerationResult, RequestContext, draft_source, generate, stepwise
from speckv.evaluation.bootstrap import resample_counts
from speckv.models.dtypes import dtype_name
from speckv.profiling.machine import describe_machine
from speckv.profiling.prompts import first_of_each, read_prompts
from speckv.runtime.constant import ConstantGamma
from speckv.traces import TraceSet, find_traces
from speckv.types import Controller

logger = logging.getLogger(__name__)
PLAIN, BEST = "autoregressive", "best fixed"

Steps = Generator[DecodeStep, None, GenerationResult]
Ratio = dict[str, float | None]


def in_turns(running: Mapping[str, Steps], *, first: int) -> dict[str, GenerationResult]:
    """Lets requests take a decode step each in turn, until all are finished.

    Args:
        running: Arm -> its request.
        first: Place of the arm that begins.
    """
    names = list(running)
    waiting = deque(names[first:] + names[:first])
    found: dict[str, GenerationResult] = {}
    while waiting:
        name = waiting.popleft()
        try:
            next(running[name])
        except StopIteration as ended:
            found[name] = ended.value
        else:
            waiting.append(name)
    return {name: found[name] for name in names}


def over(reference: Sequence[GenerationResult], mine: Sequence[GenerationResult], tasks: Sequence[str]) -> Ratio:
    """Total decode time of one arm over another's, with its paired interval."""
    left, right = (np.array([run.decode_s for run in runs]) for runs in (reference, mine))
    return as_ratio(left, right, resample_counts(list(tasks), NUM_RESAMPLES, 0))


def summarise(results: dict[str, list[GenerationResult]]) -> dict[str, dict[str, float]]:
    """Sums over prompts, then rates."""
    table = {}
    for name, runs in results.items():
        seconds = sum(r.decode_s for r in runs)
        tokens = sum(s.outcome.num_emitted for r in runs for s in r.steps)
        steps = sum(len(r.steps) for r in runs)
        table[name] = {
            "tokens_per_s": tokens / seconds,
            "tokens_per_step": tokens / steps,
            "mean_gamma": sum(g for r in runs for g in r.gammas) / steps,
            "controller_share": sum(r.controller_s for r in runs) / seconds,
            "prompts_with_another_text": sum(
                r.tokens != plain.tokens for r, plain in zip(runs, results[PLAIN], strict=True)
            ),
        }
    return table


def prediction(
    recorded: TraceSet,
    table: CostTable,
    arms: Sequence[Controller],
    results: Mapping[str, Mapping[str, GenerationResult]],
    max_new_tokens: int,
) -> dict[str, Any]:
    """How far replay's times were off, over the prompts that were recorded.

    Args:
        recorded: Recordings of decoded prompts, at the compression that was decoded.
        table: The times.
        arms: The controllers.
        results: Arm -> prompt id -> its live run.
        max_new_tokens: Token budget.
    """
    live = sorted(sequence.prompt_id for sequence in recorded.sequences)
    runs = {name: {key: of[key] for key in live} for name, of in results.items()}
    return {"prompts": live, "arms": errors(table, recorded, arms, runs, max_new_tokens)}


def main() -> None:
    """Runs the comparison and writes JSON."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", nargs="+", required=True)
    parser.add_argument("--per-task", type=int, default=2)
    parser.add_argument("--weights", type=Path, required=True, help="folder with the Qwen pair's GGUF files")
    parser.add_argument("--controllers", nargs="+", default=["shipped"], help="run folders, or the shipped policy")
    parser.add_argument("--gamma", type=int, required=True, help="the best fixed gamma, tuned on train prompts")
    parser.add_argument("--draft", choices=["0.5b", "lookup"], default="0.5b", help="lookup: --cost cpu-2core-lookup")
    parser.add_argument("--cost", default="cpu-2core")
    parser.add_argument("--compression", default="fp16")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--traces", help="recordings to hold modelled time to wall time by")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = {"dtype": arguments.dtype, "compression": arguments.compression, "draft": arguments.draft}
    pair = qwen.load_qwen(arguments.weights, **settings)
    table = CostTable.load(arguments.cost)
    context = RequestContext(compression=arguments.compression, cost_ratio=table.cost_ratio(arguments.compression))
    arms: list[Controller] = [ConstantGamma(0), ConstantGamma(arguments.gamma, name=BEST)]
    for path in arguments.controllers:
        arms.append(find_policy(path, arguments.draft).controller)
    prompts = [p for p in read_prompts(arguments.prompts) if p.split == "test"]
    prompts = first_of_each(prompts, arguments.per_task)
    recorded = None
    if arguments.traces:
        recorded = TraceSet.load(find_traces(arguments.traces)).select(
            split="test", compressions=[arguments.compression], prompt_ids=[prompt.prompt_id for prompt in prompts]
        )
    ids = encode_as_recorded(pair, prompts, recorded)
    if recorded is not None:
        require_recorded(recorded, ids)
    # An engine each: all requests are under way at once.
    engines = [Engine(pair.target, draft_source(pair), eos_token_ids=pair.eos_token_ids) for _ in arms]
    longest = max(map(len, ids.values())) + arguments.max_new_tokens
    for engine in engines:
        engine.capture_ahead(longest)
        generate(engine, pair.encode("Warm up."), ConstantGamma(2), context=context, max_new_tokens=8)
    results: dict[str, list[GenerationResult]] = defaultdict(list)
    for number, prompt in enumerate(prompts):
        running = {
            arm.name: stepwise(
                engine, ids[prompt.prompt_id], arm, context=context, max_new_tokens=arguments.max_new_tokens
            )
            for arm, engine in zip(arms, engines, strict=True)
        }
        for name, run in in_turns(running, first=number % len(arms)).items():
            results[name].append(run)
        logger.info(
            "%s: %s",
            prompt.prompt_id,
            ", ".join(f"{name} {runs[-1].tokens_per_s:.2f} tokens/s" for name, runs in results.items()),
        )
    summary = summarise(results)
    plain = summary[PLAIN]["tokens_per_s"]
    tasks = [prompt.task for prompt in prompts]
    report: dict[str, Any] = {
        "what": "live decoding, decode time only, arms in turns of one step each in one process",
        "pair": qwen.NAME,
        "draft": arguments.draft,
        "compression": arguments.compression,
        "dtype": dtype_name(pair.target.dtype),
        "max_new_tokens": arguments.max_new_tokens,
        "prompts": [p.prompt_id for p in prompts],
        "best_fixed_gamma": arguments.gamma,
        "cost_table": table.name,
        "arms": summary,
        "ratio_to_plain": {name: row["tokens_per_s"] / plain for name, row in summary.items()},
        "speedup_over_plain": {name: over(results[PLAIN], runs, tasks) for name, runs in results.items()},
        "speedup_over_best_fixed": {name: over(results[BEST], runs, tasks) for name, runs in results.items()},
        "decode_s": {name: [run.decode_s for run in runs] for name, runs in results.items()},
        "first_difference": {
            name: [first_difference(r.tokens, p.tokens) for r, p in zip(runs, results[PLAIN], strict=True)]
            for name, runs in results.items()
        },
        "machine": describe_machine(pair.target.device),
    }
    if recorded:
        by_prompt = {name: dict(zip(report["prompts"], runs, strict=True)) for name, runs in results.items()}
        found = prediction(recorded, table, arms, by_prompt, arguments.max_new_tokens)
        report["prediction"] = {"traces": arguments.traces, "check": table.checks[arguments.compression], **found}
    text = json.dumps(report, indent=1)
    logger.info(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
