# SPDX-License-Identifier: Apache-2.0
"""Decodes live for a long time and looks for what only shows then: other text, growing memory, leaked caches.

    python -m benchmarks.soak --minutes 30
    python -m benchmarks.soak --minutes 30 --target TARGET.gguf --draft DRAFT.gguf --dtype float32 --out soak.json
    python -m benchmarks.soak --minutes 30 --device cuda --target llama-3.2-1b --draft-layers 2

Requests come in random order: any gamma, any stop inside a step, greedy and Gumbel sampling, and most of them are given
up half-way. Every text is held against plain decoding of its prompt. Memory is sampled after collecting garbage; the
slope is a line's through those samples, the first fifth left out. In 16 bits near-ties flip: differences whose gap is
within --near-tie units of rounding are counted apart. Exit status: 0 if the verdict is ok, 1 otherwise.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.gpu.models import MEASURED, RANDOM, SHAPES, TUNING, load
from benchmarks.soak.memory import Watch
from benchmarks.soak.run import Limits, Report, soak
from benchmarks.soak.traffic import Traffic
from speckv.decoding import Engine, SamplingConfig
from speckv.files import write_atomically
from speckv.models import ModelPair, PairConfig
from speckv.models.dtypes import dtype_name
from speckv.profiling.machine import describe_machine

logger = logging.getLogger(__name__)
NEAR_TIE = {"float16": 6.0, "bfloat16": 6.0}
EXACT_NEAR_TIE = 64.0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shapes = ", ".join(SHAPES)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument(
        "--target", default="tiny-target", help=f"hub id, folder, GGUF file, or random weights: {shapes}"
    )
    parser.add_argument("--draft", default="self", help='the same, or "self": the first layers of the target')
    parser.add_argument("--draft-layers", type=int, default=1, help='layers of a "self" draft')
    parser.add_argument("--compression", default="fp16")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--sample-seconds", type=float, help="60 by default, less where the run is short")
    parser.add_argument("--near-tie", type=float, help="in units of rounding: 64 by default, 6 in 16 bits")
    parser.add_argument("--limit-mb-per-hour", type=float, default=Limits().mb_per_hour, help="slope that is allowed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


def make_traffic(pair: ModelPair, options: argparse.Namespace) -> Traffic:
    """Two engines under test, greedy and Gumbel, and two that decode plainly."""
    dtype = dtype_name(pair.target.dtype)
    samplings = {mode: SamplingConfig(mode=mode, seed=options.seed) for mode in ("greedy", "gumbel")}
    eos = pair.eos_token_ids
    return Traffic(
        {m: Engine(pair.target, pair.draft, eos_token_ids=eos, sampling=s) for m, s in samplings.items()},
        {m: Engine(pair.target, None, eos_token_ids=eos, sampling=s) for m, s in samplings.items()},
        {name: pair.encode(text) for name, text in (MEASURED | TUNING).items()},
        np.random.default_rng(options.seed),
        max_new_tokens=options.max_new_tokens,
        near_tie=options.near_tie if options.near_tie is not None else NEAR_TIE.get(dtype, EXACT_NEAR_TIE),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the soak; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse(arguments)
    target, draft = (RANDOM + name if name in SHAPES else name for name in (options.target, options.draft))
    config = PairConfig(
        target=target,
        draft=draft,
        draft_layers=options.draft_layers,
        compression=options.compression,
        dtype=options.dtype,
        device=options.device,
    )
    pair = load(config)
    seconds = 60 * options.minutes
    about = {
        "what": "live decoding under random policies and cancellations, held against plain decoding",
        "target": Path(pair.target.name).name,
        "draft": Path(pair.draft.name).name,
        "compression": pair.target.compression,
        "dtype": dtype_name(pair.target.dtype),
        "machine": describe_machine(pair.target.device),
    }

    def keep(report: Report) -> None:
        last = report["memory"]["samples"][-1]
        logger.info(
            "%6.0f s: %d requests, %d tokens, %.0f MB resident, %.0f MB on the device, %d sequences; %s",
            report["seconds"],
            sum(report["requests"].values()),
            report["checked_tokens"],
            last["resident_bytes"] / 1e6,
            last["device_bytes"] / 1e6,
            last["sequences"],
            report["verdict"],
        )
        if options.out:
            write_atomically(options.out, json.dumps(about | report, indent=1) + "\n")

    report = soak(
        make_traffic(pair, options),
        Watch((type(pair.target.sequence()), type(pair.draft.sequence())), pair.target.device),
        seconds=seconds,
        sample_s=options.sample_seconds or min(60.0, seconds / 20),
        limits=Limits(mb_per_hour=options.limit_mb_per_hour),
        on_sample=keep,
    )
    keep(report)
    logger.info("%s: %.1f MB/hour", report["verdict"], report["slope_mb_per_hour"])
    return 0 if report["verdict"] == "ok" else 1


if __name__ == "__main__":
    sys.exit(main())
