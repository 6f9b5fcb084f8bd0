# SPDX-License-Identifier: Apache-2.0
"""Batches of requests decoded plainly, with fixed gammas, and by controllers that know what a pass costs at that batch.

    python -m benchmarks.batch_decoding --prompts test.jsonl --weights FOLDER --batches 1 2 4 8 --gammas 1 2 4 \
        --out benchmarks/results/batch-decoding.json

For every batch size, passes of both models are timed first: a cost table of this machine at this load. `goodput`
decides by it, and so knows where a wide verify pass of many rows is dear; other controllers are told its cost ratio.
Then the same prompts are decoded in groups of that size by all arms, in an order that rotates from group to group.
Seconds are decode time, decisions included, prefill left out. In place of the pair's folder, `--weights` may name one
GGUF file, whose own first `--draft-layers` layers draft.
"""

import argparse
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import qwen
from speckv.agents.rules.goodput import Goodput, GoodputSettings
from speckv.cost import CostEntry, CostTable
from speckv.cost.times import StepTimes
from speckv.decoding import BatchEngine, BatchResult, RequestContext, SamplingConfig, generate_batch
from speckv.decoding.clock import device_clock
from speckv.decoding.protocols import BatchModel, CachedRows
from speckv.decoding.sampling import choose, warp_logits
from speckv.evaluation.bootstrap import ratio_interval, resample_counts
from speckv.models import ModelPair, PairConfig, RaggedModel, load_pair
from speckv.models.dtypes import dtype_name
from speckv.models.signals import signals
from speckv.profiling.machine import describe_machine
from speckv.profiling.prompts import Prompt, first_of_each, read_prompts
from speckv.runtime.constant import ConstantGamma
from speckv.runtime.policy import load_controller
from speckv.types import Controller

logger = logging.getLogger(__name__)
PLAIN = "autoregressive"
NUM_RESAMPLES = 10_000

MakeArms = Callable[[CostTable], Sequence[Controller]]
"""Cost table of a batch size -> the arms there, plain decoding among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """How pass times are measured.

    Attributes:
        compression: Of the target.
        dtype: Of its arithmetic.
        context: Tokens before a pass.
        widths: Tokens of a pass, a row; the first is 1.
        repeats: Timings a width, one more being dropped.
    """

    compression: str
    dtype: str
    context: int = 192
    widths: tuple[int, ...] = (1, 2, 3, 5, 9)
    repeats: int = 5


def time_passes(model: BatchModel, batch: int, how: Measurement, *, last_only: bool) -> list[float]:
    """Median seconds of a pass of `batch` rows at each width, with what the engine does with its logits."""
    generator = torch.Generator().manual_seed(0)
    longest = how.context + max(how.widths)
    tokens = torch.randint(model.vocab_size, (batch, longest), generator=generator).to(model.device)
    cache = model.rows()
    cache.add(batch)
    cache.extend(range(batch), tokens[:, : how.context], [how.context] * batch, last_only=True)
    clock = device_clock(model.device)
    seconds: dict[int, list[float]] = defaultdict(list)
    for _ in range(how.repeats + 1):
        for width in how.widths:
            started = clock()
            _pass(cache, tokens[:, how.context : how.context + width], last_only=last_only)
            seconds[width].append(float(clock() - started))
            for row in range(batch):
                cache.truncate(row, how.context)
    return [float(np.median(seconds[width][1:])) for width in how.widths]


def _pass(cache: CachedRows, tokens: torch.Tensor, *, last_only: bool) -> None:
    batch, width = tokens.shape
    greedy = SamplingConfig()
    logits = cache.extend(range(batch), tokens, [width] * batch, last_only=last_only)
    choose(warp_logits(logits, greedy), greedy, None).tolist()
    signals(logits).cpu()


def measure(target: BatchModel, draft: BatchModel, batch: int, how: Measurement) -> CostTable:
    """A cost table of this machine for steps of `batch` rows."""
    entry = CostEntry(
        compression=how.compression,
        dtype=how.dtype,
        reference_context=how.context,
        draft_widths=how.widths,
        draft_s=time_passes(draft, batch, how, last_only=True),
        draft_context_slope_s=0.0,
        verify_widths=how.widths,
        verify_s=time_passes(target, batch, how, last_only=False),
        verify_context_slope_s=0.0,
    )
    return CostTable(
        name=f"batch-{batch}",
        kind="measured",
        machine=describe_machine(target.device),
        entries={how.compression: entry},
    )


def compare(
    engine: BatchEngine,
    groups: Sequence[Sequence[Sequence[int]]],
    arms: Sequence[Controller],
    context: RequestContext,
    max_new_tokens: int,
) -> dict[str, list[BatchResult]]:
    """Decodes every group of prompts with every arm, in an order that rotates; results by arm, one a group."""
    results: dict[str, list[BatchResult]] = {arm.name: [] for arm in arms}
    for number, prompts in enumerate(groups):
        first = number % len(arms)
        for arm in [*arms[first:], *arms[:first]]:
            run = generate_batch(engine, prompts, arm, context=context, max_new_tokens=max_new_tokens)
            results[arm.name].append(run)
        speeds = (f"{name} {runs[-1].tokens_per_s:.2f} tokens/s" for name, runs in results.items())
        logger.info("batch of %d, group %d: %s", len(prompts), number + 1, ", ".join(speeds))
    return results


def summarise(results: Mapping[str, Sequence[BatchResult]]) -> dict[str, dict[str, Any]]:
    """Sums over groups, then rates; ratios to plain decoding of the same groups, per token."""
    plain = results[PLAIN]
    counts = resample_counts(["group"] * len(plain), NUM_RESAMPLES, 0)
    plain_s = np.array([run.decode_s / max(run.num_tokens, 1) for run in plain])
    table: dict[str, dict[str, Any]] = {}
    for name, runs in results.items():
        seconds, tokens = sum(run.decode_s for run in runs), sum(run.num_tokens for run in runs)
        gammas = [gamma for run in runs for one in run.results for gamma in one.gammas]
        mine, theirs = ([one.tokens for run in some for one in run.results] for some in (runs, plain))
        # Texts are the same but for ties: seconds for plain decoding's tokens, whatever was emitted.
        weights = np.array([run.num_tokens for run in plain], np.float64)
        mine_s = np.array([run.decode_s / max(run.num_tokens, 1) for run in runs])
        ratio = ratio_interval(plain_s * weights, mine_s * weights, counts)
        table[name] = {
            "tokens_per_s": tokens / seconds,
            "tokens_per_step_and_row": tokens / len(gammas),
            "mean_gamma": float(np.mean(gammas)),
            "share_of_gamma_0": float(np.mean(np.array(gammas) == 0)),
            "mean_running": float(np.mean([load for run in runs for load in run.running])),
            "controller_share": sum(run.controller_s for run in runs) / seconds,
            "prompts_with_another_text": sum(a != b for a, b in zip(mine, theirs, strict=True)),
            "x_plain": {"estimate": ratio.estimate, "low": ratio.low, "high": ratio.high},
        }
    return table


def run_batch(
    engine: BatchEngine,
    prompts: Sequence[Sequence[int]],
    batch: int,
    make_arms: MakeArms,
    how: Measurement,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Everything about one batch size; prompts that fill no group are left out."""
    assert engine.draft is not None
    table = measure(engine.target, engine.draft, batch, how)
    context = RequestContext(compression=how.compression, cost_ratio=table.cost_ratio(how.compression))
    groups = [prompts[i : i + batch] for i in range(0, len(prompts) - batch + 1, batch)]
    entry = table.entry(how.compression)
    return {
        "groups": len(groups),
        "cost_ratio": context.cost_ratio,
        "widths": list(how.widths),
        "draft_s": list(entry.draft_s),
        "verify_s": list(entry.verify_s),
        "arms": summarise(compare(engine, groups, make_arms(table), context, max_new_tokens)),
    }


def interleave(prompts: Sequence[Prompt]) -> list[Prompt]:
    """One of each task, then another one of each: groups are mixed, as a server's load is."""
    counts: Counter[str] = Counter()
    places = []
    for prompt in prompts:
        places.append(counts[prompt.task])
        counts[prompt.task] += 1
    return [prompts[i] for i in sorted(range(len(prompts)), key=places.__getitem__)]


def arms_of(gammas: Sequence[int], folders: Sequence[str], *, gamma_max: int) -> MakeArms:
    """Plain decoding, fixed gammas, goodput on the table at hand, and stored controllers."""
    stored = [load_controller(folder) for folder in folders]

    def make(table: CostTable) -> list[Controller]:
        goodput = Goodput(GoodputSettings(gamma_max=gamma_max), StepTimes.of(table))
        return [ConstantGamma(0), *map(ConstantGamma, gammas), goodput, *stored]

    return make


def load(options: argparse.Namespace) -> ModelPair:
    """The Qwen pair of a folder, or one GGUF file drafted for by its own first layers."""
    if options.weights.is_file():
        shared = {"dtype": options.dtype, "device": options.device, "compression": options.compression}
        return load_pair(
            PairConfig(target=str(options.weights), draft="self", draft_layers=options.draft_layers, **shared)
        )
    return qwen.load_qwen(options.weights, dtype=options.dtype, compression=options.compression)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", nargs="+", required=True)
    parser.add_argument("--per-task", type=int, default=4)
    parser.add_argument("--weights", type=Path, required=True, help="the Qwen pair's GGUF folder, or one GGUF file")
    parser.add_argument("--draft-layers", type=int, default=8, help="layers of the draft, if one file is given")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--gammas", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--gamma-max", type=int, default=8, help="of goodput")
    parser.add_argument("--controllers", nargs="*", default=[], help="run folders; none that learns as it decodes")
    parser.add_argument("--compression", default="fp16")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto", help="of a single file; the pair takes the fastest one")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--context", type=int, default=192, help="tokens before the passes that are timed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


def main() -> None:
    """Runs the comparison and writes JSON."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    pair = load(options)
    prompts = [p for p in read_prompts(options.prompts) if p.split == "test"]
    prompts = interleave(first_of_each(prompts, options.per_task))
    ids = [pair.encode(prompt.text) for prompt in prompts]
    how = Measurement(
        compression=options.compression,
        dtype=dtype_name(pair.target.dtype),
        context=options.context,
        repeats=options.repeats,
    )
    engine = BatchEngine(
        RaggedModel(pair.target),
        RaggedModel(pair.draft),
        eos_token_ids=pair.eos_token_ids,
        clock=device_clock(pair.target.device),
    )
    make_arms = arms_of(options.gammas, options.controllers, gamma_max=options.gamma_max)
    started = time.perf_counter()
    found = {
        str(batch): run_batch(engine, ids, batch, make_arms, how, options.max_new_tokens) for batch in options.batches
    }
    report = {
        "what": "decoding in batches, decode time only, arms interleaved in one process",
        "target": pair.target.name if options.weights.is_file() else qwen.NAME,
        "draft_layers": options.draft_layers if options.weights.is_file() else None,
        "compression": options.compression,
        "dtype": how.dtype,
        "max_new_tokens": options.max_new_tokens,
        "prompts": [p.prompt_id for p in prompts],
        "batches": found,
        "minutes": (time.perf_counter() - started) / 60,
        "machine": describe_machine(pair.target.device),
    }
    text = json.dumps(report, indent=1)
    logger.info(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
