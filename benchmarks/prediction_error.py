# SPDX-License-Identifier: Apache-2.0
"""Is modelled time wall time? Whole policies replayed on a cost table, and decoded live on the same prompts.

    python -m benchmarks.prediction_error --prompts test.jsonl --weights FOLDER --cost my-machine.json \
        --controllers shipped --out benchmarks/results/prediction-error.json

Run it alone on the machine that the table was measured on. Each prompt is decoded by plain decoding, by the best fixed
gamma of the compression (tuned on the recording's train prompts) and by the controllers, in an order that rotates, and
is replayed on the recording by each. `error` is predicted over measured total time, minus 1. Where 16-bit arithmetic
lets a live text part from the recorded one, its length may differ: `error_per_token` divides both by their tokens.
`error_same_steps` predicts from the live steps' own counts, so that time alone can differ.
"""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import qwen
from speckv.commands.decode import find_policy
from speckv.cost import MOST_ERROR, CompiledCost, CostTable
from speckv.decoding import Engine, GenerationResult, RequestContext, generate
from speckv.decoding.clock import device_clock
from speckv.evaluation.replays import tune_fixed
from speckv.files import write_atomically
from speckv.models import ModelPair, encode_prompt
from speckv.models.dtypes import dtype_name
from speckv.profiling.calibrate import measured_seconds, predicted_seconds
from speckv.profiling.machine import describe_machine
from speckv.profiling.prompts import Prompt, first_of_each, read_prompts
from speckv.replay import CompiledTraces, replay_controller
from speckv.runtime.constant import ConstantGamma
from speckv.traces import TraceSet, find_traces
from speckv.types import Controller

logger = logging.getLogger(__name__)
Runs = Mapping[str, Mapping[str, GenerationResult]]
"""Controller -> prompt id -> its live run."""


def require_recorded(traces: TraceSet, ids: Mapping[str, Sequence[int]]) -> None:
    """Passes if recorded prompts are those that are decoded.

    Raises:
        TraceError: naming the first that differs.
    """
    for sequence in traces.sequences:
        sequence.require_prompt(ids[sequence.prompt_id])


def encode_as_recorded(pair: ModelPair, prompts: Sequence[Prompt], traces: TraceSet | None) -> dict[str, list[int]]:
    """Token ids by prompt id, with the date of a recording for chat templates that print it."""
    date = traces.metadata.template_datetime if traces else None
    chat_template = pair.config.chat_template
    return {p.prompt_id: encode_prompt(pair.tokenizer, p.text, chat_template=chat_template, date=date) for p in prompts}


def decode_live(
    engine: Engine,
    prompts: Mapping[str, Sequence[int]],
    arms: Sequence[Controller],
    context: RequestContext,
    max_new_tokens: int,
) -> Runs:
    """Decodes every prompt with every arm, in an order that rotates.

    Args:
        engine: With the clock of its device.
        prompts: Prompt id -> token ids.
        arms: Of different names.
        context: Passed to controllers.
        max_new_tokens: Token budget.
    """
    runs: dict[str, dict[str, GenerationResult]] = {arm.name: {} for arm in arms}
    for arm in arms:  # warm up
        generate(engine, next(iter(prompts.values())), arm, context=context, max_new_tokens=8)
    for number, (prompt_id, ids) in enumerate(prompts.items()):
        first = number % len(arms)
        for arm in [*arms[first:], *arms[:first]]:
            run = generate(
                engine, ids, arm, context=context, max_new_tokens=max_new_tokens, request=f"{prompt_id}/{arm.name}"
            )
            runs[arm.name][prompt_id] = run
        spent = ", ".join(f"{name} {of[prompt_id].decode_s:.2f} s" for name, of in runs.items())
        logger.info("%s: %s", prompt_id, spent)
    return runs


def errors(
    table: CostTable,
    traces: TraceSet,
    arms: Sequence[Controller],
    runs: Runs,
    max_new_tokens: int,
) -> dict[str, dict[str, Any]]:
    """Predicted against measured time of each arm, all prompts together.

    Args:
        table: The times.
        traces: Recordings of the decoded prompts at one compression.
        arms: The controllers.
        runs: What they did live.
        max_new_tokens: Token budget, live and in replay.
    """
    (compression,) = traces.compressions
    compiled = CompiledTraces(traces)
    cost = CompiledCost(table, compiled.compression_names, gamma_max=compiled.gamma_max)
    lengths = {s.prompt_id: s.prompt_len for s in traces.sequences}
    texts = {s.prompt_id: s.tokens.tolist() for s in traces.sequences}
    found = {}
    for arm in arms:
        record = replay_controller(arm, compiled, cost, budget=max_new_tokens)
        live = runs[arm.name]
        measured = sum(measured_seconds(run, arm) for run in live.values())
        tokens = sum(step.outcome.num_emitted for run in live.values() for step in run.steps)
        predicted, replayed = float(record.seconds.sum()), int(record.num_tokens.sum())
        same = sum(predicted_seconds(table, compression, lengths[key], run, arm) for key, run in live.items())
        found[arm.name] = {
            "predicted_s": predicted,
            "predicted_tokens": replayed,
            "measured_s": measured,
            "measured_tokens": tokens,
            "error": predicted / measured - 1,
            "error_per_token": (predicted / replayed) / (measured / tokens) - 1,
            "error_same_steps": same / measured - 1,
            "prompts_with_the_recorded_text": sum(
                list(run.tokens) == texts[key][: len(run.tokens)] for key, run in live.items()
            ),
        }
    return found


def of_compression(compression: str, prompts: Sequence[Prompt], options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one compression of the pair."""
    table = CostTable.load(options.cost)
    recorded = TraceSet.load(find_traces(options.traces)).select(compressions=[compression])
    best = tune_fixed(recorded.select(split="train"), table).best()[compression]
    traces = recorded.select(split="test", prompt_ids=[prompt.prompt_id for prompt in prompts])
    pair = qwen.load_qwen(options.weights, dtype=options.dtype, compression=compression)
    ids = encode_as_recorded(pair, prompts, traces)
    require_recorded(traces, ids)
    arms: list[Controller] = [ConstantGamma(0), ConstantGamma(best, name="best-fixed")]
    for path in options.controllers:
        arms.append(find_policy(path, pair.config.draft).controller)
    clock = device_clock(pair.target.device)
    engine = Engine(pair.target, pair.draft, eos_token_ids=pair.eos_token_ids, clock=clock)
    engine.capture_ahead(max(map(len, ids.values())) + options.max_new_tokens)
    context = RequestContext(compression=compression, cost_ratio=table.cost_ratio(compression))
    recorded_ids = {sequence.prompt_id: ids[sequence.prompt_id] for sequence in traces.sequences}
    runs = decode_live(engine, recorded_ids, arms, context, options.max_new_tokens)
    found = errors(table, traces, arms, runs, options.max_new_tokens)
    return {
        "dtype": dtype_name(pair.target.dtype),
        "table_dtype": table.entry(compression).dtype,
        "kernel": table.entry(compression).kernel,
        "check": table.checks[compression],
        "best_fixed_gamma": best,
        "prompts": sorted(recorded_ids),
        "arms": found,
        "worst_error": float(np.max(np.abs([arm["error_per_token"] for arm in found.values()]))),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison and writes JSON."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", nargs="+", required=True, help="the files that the recording was made from")
    parser.add_argument("--per-task", type=int, default=2)
    parser.add_argument("--weights", type=Path, required=True, help="folder with the Qwen pair's GGUF files")
    parser.add_argument("--traces", default="qwen2.5-coder-greedy")
    parser.add_argument("--cost", default="cpu-2core")
    parser.add_argument("--compressions", nargs="+", default=["fp16", "int8", "nf4"])
    parser.add_argument("--controllers", nargs="*", default=["shipped"], help="run folders, or the shipped policy")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    prompts = [prompt for prompt in read_prompts(options.prompts) if prompt.split == "test"]
    prompts = first_of_each(prompts, options.per_task)
    found = {name: of_compression(name, prompts, options) for name in options.compressions}
    for name, result in found.items():
        verdict = "within" if result["worst_error"] <= MOST_ERROR else "beyond"
        logger.info("%s: worst error a token %.1f %%, %s 10 %%", name, 100 * result["worst_error"], verdict)
    report = {
        "what": "time of whole policies, replayed on a cost table against decoded live, decode time only",
        "pair": qwen.NAME,
        "cost_table": CostTable.load(options.cost).name,
        "cost_sha256": CostTable.load(options.cost).sha256,
        "traces": options.traces,
        "max_new_tokens": options.max_new_tokens,
        "compressions": found,
        "machine": describe_machine(),
    }
    text = json.dumps(report, indent=1)
    logger.info(text)
    if options.out:
        write_atomically(options.out, text + "\n")


if __name__ == "__main__":
    main()
