# SPDX-License-Identifier: Apache-2.0
"""Measures a pair of models in llama-cpp-python and writes a cost table; run it alone on the machine.

    python -m benchmarks.llamacpp.calibrate --name llama-cpp-2core --weights GGUF_FOLDER --out llama-cpp-2core.json

Widths 1 to 17 of draft and target, at two contexts, and the draft's reading of a prompt, which a request's first draft
waits for; then whole runs that the table is held to. It is a table like any
other:

    speckv train agent=survival_stopping cost.table=llama-cpp-2core.json data.compressions=[fp16]
"""

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.llamacpp.check import check_pair
from benchmarks.llamacpp.models import Setting, add_arguments, encode, machine
from benchmarks.llamacpp.passes import time_pair, time_prompt
from speckv.cost import CostEntry, CostTable, describe_fit
from speckv.integrations.llama_cpp import draft_model
from speckv.profiling.prompts import EXAMPLES, first_of_each, read_prompts
from speckv.profiling.timing import PassTimes, TimingPlan, entry_of
from speckv.runtime import Policy
from speckv.runtime.constant import ConstantGamma
from speckv.runtime.policy import load_controller
from speckv.runtime.shipped import shipped_policy
from speckv.types import BITS_PER_WEIGHT

logger = logging.getLogger(__name__)
NOTES = (
    "Weights as they are in the GGUF files, Q4_K_M about 4.8 bits each, times activations in 8 bits. The entry is "
    "named {compression}; recordings of the shipped pair call the texts of the same weights, dequantised, fp16. A "
    "verify pass holds one choice of a token; each further emitted token takes {choice_ms:.2f} ms more, with or "
    "without a draft, which is left out. llama-cpp-python keeps the logits of every token where a draft is used, which "
    "makes reading a prompt slower; of prompts, these times hold the draft's reading of one alone."
)


def entry(
    compression: str, setting: Setting, plan: TimingPlan, draft: PassTimes, verify: PassTimes, draft_prompt_s: float
) -> CostEntry:
    """The table's entry."""
    times = entry_of(
        draft,
        verify,
        plan,
        compression=compression,
        dtype="8-bit activations, 32-bit sums",
        kernel=setting.kernel(setting.target, setting.cache),
        draft_kernel=setting.kernel(setting.draft, "f16"),
    )
    return replace(times, draft_prompt_s=draft_prompt_s)


def time_decision(repeats: int = 500) -> float:
    """Median seconds of a decision of PPO's network, with observing and remembering."""
    session = Policy.of(load_controller(shipped_policy("cpu-2core-ppo"))).session(max_new_tokens=1 << 20)
    session.start(0.5, 0.9)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        session.begin_step()
        session.end_step(0, 0.5, 0.9, num_drafted=0, seconds=0.1)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def time_choice(target: Any, repeats: int = 50) -> float:
    """Median seconds of choosing a token from logits that are there."""
    target.reset()
    target.eval([1, 2])
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        target.sample(temp=0.0, top_k=1, idx=1)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.llamacpp.calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--name", required=True, help="of the table")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--compression", choices=list(BITS_PER_WEIGHT), default="fp16", help="name of the entry")
    parser.add_argument("--reference-context", type=int, default=256)
    parser.add_argument("--far-context", type=int, default=1024)
    parser.add_argument("--widths", type=int, nargs="+", default=list(TimingPlan().widths))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warmups", type=int, default=2)
    parser.add_argument("--check-prompts", nargs="*", default=[str(EXAMPLES)], help="none: leave the table unchecked")
    parser.add_argument("--check-per-task", type=int, default=1)
    parser.add_argument("--check-gammas", type=int, nargs="+", default=[0, 2, 5])
    parser.add_argument("--check-tokens", type=int, default=32)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> CostTable:
    """Measures, checks, writes; what was measured is kept, however the check ends."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse(arguments)
    setting, compression = Setting.of(options), options.compression
    plan = TimingPlan(
        reference_context=options.reference_context,
        far_context=options.far_context,
        widths=tuple(options.widths),
        repeats=options.repeats,
        warmups=options.warmups,
    )
    draft = setting.load_draft()
    target = setting.load_target(logits_all=True, draft_model=draft_model(Policy.of(ConstantGamma(0)), draft))
    texts = first_of_each(read_prompts(options.check_prompts), options.check_per_task) if options.check_prompts else []
    prompts = [encode(target, prompt.text) for prompt in texts]
    draft_times, verify_times = time_pair(target, draft, plan, logger.info)
    draft_prompt_s = time_prompt(draft, plan)
    table = CostTable(
        name=options.name,
        kind="measured",
        machine=machine(setting),
        entries={compression: entry(compression, setting, plan, draft_times, verify_times, draft_prompt_s)},
        controller_s=time_decision(),
        notes=NOTES.format(compression=compression, choice_ms=1e3 * time_choice(target)),
        source=f"python -m benchmarks.llamacpp.calibrate, pair {setting.pair}",
    )
    table.save(options.out)
    for name, times in (("draft", draft_times), ("verify", verify_times)):
        rows = ", ".join(f"{w}: {1e3 * s:.1f}" for w, s in zip(times.widths, times.seconds, strict=True))
        logger.info("%s pass by width, ms: %s", name, rows)
    logger.info("draft's reading of a prompt: %.2f ms a token", 1e3 * draft_prompt_s)
    if prompts:
        logger.info("decoding %d prompts to check the times", len(prompts))
        fit = check_pair(
            table,
            compression,
            target,
            draft,
            prompts,
            gammas=options.check_gammas,
            max_new_tokens=options.check_tokens,
        )
        table = replace(table, fit={compression: fit})
        table.save(options.out)
        logger.info("%s: total time %s", compression, describe_fit("measured", fit))
    return table


if __name__ == "__main__":
    main()
