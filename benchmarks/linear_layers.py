# SPDX-License-Identifier: Apache-2.0
"""Passes of a pair's models with stock `nn.Linear` layers and with SpecKV's, side by side.

    python -m benchmarks.linear_layers --weights FOLDER --out benchmarks/results/linear-layers.json

Both kinds run in turn, for some rounds, on the same text; a pass of each width is timed several times a round. Layers
of a compressed model are its own: there only the head changes.
"""

import argparse
import gc
import json
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import qwen
from benchmarks.readme_table import line
from speckv.files import write_atomically
from speckv.models.causal import CausalModel
from speckv.models.compression import silence_int8_cast_notice
from speckv.models.device import use_threads
from speckv.models.dtypes import resolve_dtype
from speckv.models.linear import fastest_products, stock_layers, use_fast_linear
from speckv.models.pair import load_model, resolve_device
from speckv.profiling.machine import describe_machine

logger = logging.getLogger(__name__)
CONTEXT = 128
"""Tokens in the cache."""
STOCK, FAST = "stock", "fast"


def pass_s(model: CausalModel, width: int, repeats: int) -> float:
    """Median seconds of a pass of `width` tokens."""
    sequence = model.sequence()
    sequence.extend(list(range(100, 100 + CONTEXT)))
    seconds = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        sequence.extend([5] * width)
        seconds.append(time.perf_counter() - started)
        sequence.truncate(CONTEXT)
    return median(seconds[2:])


def compare(model: CausalModel, widths: Sequence[int], *, rounds: int, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds of both kinds by width, and the ratio of each round."""
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(rounds):
        for kind in (STOCK, FAST):
            (stock_layers if kind == STOCK else use_fast_linear)(model.hf)
            for width in widths:
                times[kind, width].append(pass_s(model, width, repeats))
    rows = []
    for width in widths:
        stock, fast = times[STOCK, width], times[FAST, width]
        ratios = sorted(s / f for s, f in zip(stock, fast, strict=True))
        rows.append(
            {
                "width": width,
                "stock_ms": round(1e3 * median(stock), 1),
                "fast_ms": round(1e3 * median(fast), 1),
                "speedup": round(median(ratios), 2),
                "speedup_range": [round(ratios[0], 2), round(ratios[-1], 2)],
            }
        )
    return rows


RESULT = Path(__file__).resolve().parent / "results" / "linear-layers.json"


def render() -> str:
    """The table in Markdown."""
    models = json.loads(RESULT.read_text(encoding="utf-8"))["models"]
    widths = [row["width"] for row in models[0]["passes"]]
    lines = [["ms, stock / SpecKV's", *(f"{width} rows" if width > 1 else "1 row" for width in widths)]]
    lines.append(["---"] * len(lines[0]))
    for model in models:
        name = f"{model['model']}, {model['compression']}, {model['dtype']}"
        lines.append([name, *(f"{row['stock_ms']:.0f} / {row['fast_ms']:.0f}" for row in model["passes"])])
    return "\n".join(map(line, lines))


def main() -> None:
    """Measures every model, compression and dtype, and writes the results."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--weights", type=Path, required=True, help="folder with the pair's GGUF files")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--compressions", nargs="+", default=["fp16", "int8", "nf4"], help="of the target")
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 2, 3, 5, 9, 17])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0: as PyTorch chooses")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    use_threads(arguments.threads or None)
    silence_int8_cast_notice()
    device = resolve_device("cpu")
    target, draft = qwen.files(arguments.weights)
    models = [(target, "target", name) for name in arguments.compressions] + [(draft, "draft", "fp16")]
    results = []
    for name in arguments.dtypes:
        dtype = resolve_dtype(name, device)
        products = fastest_products(dtype)
        for file, role, compression in models:
            model = load_model(str(file), compression=compression, dtype=dtype, device=device)
            rows = compare(model, arguments.widths, rounds=arguments.rounds, repeats=arguments.repeats)
            results.append({"model": role, "compression": compression, "dtype": name, "passes": rows})
            for row in rows:
                logger.info("%s %s %s: %s", role, compression, name, row)
            del model
            gc.collect()
        logger.info("%s: packed %s, padded %s", name, products.packs, sorted(products.padded))
    content = {"machine": describe_machine(), "context": CONTEXT, "rounds": arguments.rounds, "models": results}
    write_atomically(arguments.out, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
