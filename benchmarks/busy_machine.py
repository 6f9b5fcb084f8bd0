# SPDX-License-Identifier: Apache-2.0
"""Live decoding while another program comes and goes: plain, the best fixed gamma, and controllers.

    python -m benchmarks.busy_machine --prompts test.jsonl --weights FOLDER --cost mine.json --gamma 3 \
        --controllers shipped runs/told --out benchmarks/results/busy-machine.json

All arms decode the same prompts in turns of one step each. Every `--period` seconds the other program, matrix products
in `--threads-of-other` threads, is started or stopped. Rates are tokens over decode seconds within each period; the
picture shows them over time.
"""

import argparse
import json
import logging
import subprocess
import sys
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import qwen
from benchmarks.live_decoding import BEST, PLAIN
from speckv.commands.decode import find_policy
from speckv.cost import CostTable
from speckv.decoding import Engine, RequestContext, draft_source, generate, stepwise
from speckv.files import write_atomically
from speckv.models.dtypes import dtype_name
from speckv.profiling.machine import describe_machine
from speckv.profiling.prompts import first_of_each, read_prompts
from speckv.runtime.constant import ConstantGamma
from speckv.types import Controller

logger = logging.getLogger(__name__)
RESULT = Path(__file__).resolve().parent / "results" / "busy-machine.json"
OTHER = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
a = torch.randn(2048, 2048)
while True:
    a @ a
"""
SHOWN_S = 10.0
"""Width of a point in the picture."""


class Other:
    """The other program."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._process: subprocess.Popen[bytes] | None = None

    def switch(self, running: bool) -> None:
        """Starts or stops it."""
        if running and self._process is None:
            self._process = subprocess.Popen([sys.executable, "-c", OTHER, str(self._threads)])
        elif not running and self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def run(
    arms: Sequence[Controller],
    engines: Sequence[Engine],
    prompts: Sequence[Sequence[int]],
    context: RequestContext,
    *,
    max_new_tokens: int,
    period_s: float,
    periods: int,
    other: Other,
) -> dict[str, list[list[float]]]:
    """Decodes until all periods are over; arm -> [seconds since the start, tokens, decode seconds] of each step."""
    steps: dict[str, list[list[float]]] = defaultdict(list)
    began, number = time.monotonic(), 0
    try:
        while (now := time.monotonic() - began) < period_s * periods:
            prompt = prompts[number % len(prompts)]
            waiting = deque(
                (arm.name, stepwise(engine, prompt, arm, context=context, max_new_tokens=max_new_tokens))
                for arm, engine in zip(arms, engines, strict=True)
            )
            waiting.rotate(number)
            while waiting:
                now = time.monotonic() - began
                other.switch(int(now // period_s) % 2 == 1)
                name, request = waiting.popleft()
                try:
                    step = next(request)
                except StopIteration:
                    continue
                waiting.append((name, request))
                if step.drafted or step.outcome.num_emitted:
                    steps[name].append([round(now, 3), step.outcome.num_emitted, round(step.outcome.seconds, 5)])
            number += 1
            logger.info("%d texts, %.0f s", number, time.monotonic() - began)
    finally:
        other.switch(False)
    return steps


def rates(steps: Mapping[str, Sequence[Sequence[float]]], width_s: float) -> dict[str, dict[int, float]]:
    """Arm -> number of the period -> tokens a second."""
    found: dict[str, dict[int, float]] = {}
    for name, rows in steps.items():
        sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for at, tokens, seconds in rows:
            total = sums[int(at // width_s)]
            total[0] += tokens
            total[1] += seconds
        found[name] = {place: tokens / seconds for place, (tokens, seconds) in sorted(sums.items()) if seconds > 0}
    return found


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draws rates over time; the other program's periods are grey."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
    for name, by_bin in rates(result["steps"], SHOWN_S).items():
        axis.plot([(place + 0.5) * SHOWN_S for place in by_bin], list(by_bin.values()), marker=".", label=name)
    for place in range(1, result["periods"], 2):
        axis.axvspan(place * result["period_s"], (place + 1) * result["period_s"], color="0.9")
    axis.set_xlabel("seconds; grey: another program runs")
    axis.set_ylabel("tokens a second")
    axis.set_ylim(bottom=0)
    axis.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Measures, writes and draws."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", nargs="+", required=True)
    parser.add_argument("--weights", type=Path, required=True, help="folder with the Qwen pair's GGUF files")
    parser.add_argument("--controllers", nargs="+", default=["shipped"])
    parser.add_argument("--gamma", type=int, required=True, help="the best fixed gamma of the idle machine")
    parser.add_argument("--cost", default="cpu-2core")
    parser.add_argument("--compression", default="fp16")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--period", type=float, default=60.0)
    parser.add_argument("--periods", type=int, default=4)
    parser.add_argument("--threads-of-other", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    pair = qwen.load_qwen(arguments.weights, dtype=arguments.dtype, compression=arguments.compression)
    table = CostTable.load(arguments.cost)
    context = RequestContext(compression=arguments.compression, cost_ratio=table.cost_ratio(arguments.compression))
    arms: list[Controller] = [ConstantGamma(0, name=PLAIN), ConstantGamma(arguments.gamma, name=BEST)]
    arms += [find_policy(path, "0.5b").controller for path in arguments.controllers]
    engines = [Engine(pair.target, draft_source(pair), eos_token_ids=pair.eos_token_ids) for _ in arms]
    for engine in engines:
        generate(engine, pair.encode("Warm up."), ConstantGamma(2), context=context, max_new_tokens=8)
    chosen = first_of_each([p for p in read_prompts(arguments.prompts) if p.split == "test"], 6)
    steps = run(
        arms,
        engines,
        [pair.encode(prompt.text) for prompt in chosen],
        context,
        max_new_tokens=arguments.max_new_tokens,
        period_s=arguments.period,
        periods=arguments.periods,
        other=Other(arguments.threads_of_other),
    )
    result: dict[str, Any] = {
        "what": "live decoding, arms in turns of one step each; another program runs in every second period",
        "pair": qwen.NAME,
        "compression": arguments.compression,
        "dtype": dtype_name(pair.target.dtype),
        "period_s": arguments.period,
        "periods": arguments.periods,
        "threads_of_other": arguments.threads_of_other,
        "threads": torch.get_num_threads(),
        "tokens_per_s": {name: {} for name in steps},
        "by_period": rates(steps, arguments.period),
        "machine": describe_machine(pair.target.device),
        "steps": steps,
    }
    for name, rows in steps.items():
        for word, parity in (("idle", 0), ("busy", 1)):
            kept = [row for row in rows if int(row[0] // arguments.period) % 2 == parity]
            result["tokens_per_s"][name][word] = sum(row[1] for row in kept) / sum(row[2] for row in kept)
    logger.info(json.dumps(result["tokens_per_s"], indent=1))
    write_atomically(arguments.out, json.dumps(result) + "\n")
    draw(result, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
