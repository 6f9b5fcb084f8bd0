# SPDX-License-Identifier: Apache-2.0
"""A stage of `benchmarks.gpu` in a process of its own: `python -m benchmarks.gpu.stage FUNCTION SETTINGS FILE SECONDS`.

A stage is a list of pieces. A piece that fails is recorded and the next one goes on; the file is rewritten after each.
Needs the standard library only, so that the stage `machine` can report missing packages.
"""

import gc
import importlib
import json
import logging
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from speckv.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "MPLBACKEND": "Agg"}
UNKNOWN = "unknown"

Piece = Callable[[float], Any]
"""Measures something. Its argument is the `time.monotonic()` at which a loop in it should end."""


class Stage(NamedTuple):
    """Its share of the time, in seconds of a run of 20 minutes, and the function that returns its pieces."""

    share_s: float
    function: str
    what: str


STAGES = {
    "machine": Stage(90, "benchmarks.gpu.checks:machine", "device, driver, versions, missing packages"),
    "weights": Stage(200, "benchmarks.gpu.checks:weights", "weights joined from their parts, verified and converted"),
    "tests": Stage(120, "benchmarks.gpu.checks:gpu_tests", "tests marked gpu"),
    "lossless": Stage(
        200, "benchmarks.gpu.measure:lossless", "random gammas against plain decoding, by dtype and compression"
    ),
    "calibration": Stage(290, "benchmarks.gpu.measure:calibration", "cost tables of the pairs"),
    "throughput": Stage(
        210, "benchmarks.gpu.measure:throughput", "plain, best fixed gamma, controllers and transformers' own, live"
    ),
    "breakdown": Stage(90, "benchmarks.gpu.measure:breakdown", "milliseconds of a step by part"),
}
"""In the order they run; the shares add up to 20 minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Arguments of every stage.

    Attributes:
        tiny: Random models of a few thousand weights and a few tokens: a rehearsal.
        short: Little time: each stage leaves out the least useful pieces.
        weights: Folder with the Qwen pair's GGUF files, or with their parts; "" for none.
        tables: Folder that cost tables are written to.
        tests: Files or folders with tests marked `gpu`.
    """

    device: str = "cuda"
    tiny: bool = False
    short: bool = False
    weights: str = ""
    tables: str = "benchmarks/results"
    tests: Sequence[str] = ("tests",)


class KeptWarnings(logging.Handler):
    """Keeps the text of each warning once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a text."""
        text = f"{record.name}: {record.getMessage()}"
        if text not in self.texts:
            self.texts.append(text)


def run_pieces(pieces: Mapping[str, Piece], file: Path, seconds: float) -> None:
    """Runs the pieces in order and rewrites the file after each; those not begun after `seconds` are skipped."""
    kept, found = KeptWarnings(), dict[str, dict[str, Any]]()
    for name in ("", "transformers"):  # transformers' logger does not propagate
        logging.getLogger(name).addHandler(kept)
    end = time.monotonic() + seconds
    for done, (name, measure) in enumerate(pieces.items()):
        began = time.monotonic()
        if began >= end:
            found[name] = {"status": "skipped", "error": f"not begun within {seconds:.0f} s"}
            continue
        found[name] = {"status": "running"}
        write_atomically(file, json.dumps({"pieces": found, "warnings": kept.texts}))
        try:
            found[name] = {"status": "ok", "found": measure(began + (end - began) / (len(pieces) - done))}
        except Exception as error:
            traceback.print_exc()
            found[name] = {"status": "error", "error": f"{type(error).__name__}: {error}"}
        found[name]["seconds"] = time.monotonic() - began
        _free_memory()  # only now has the error released the models in its frames
    write_atomically(file, json.dumps({"pieces": found, "warnings": kept.texts}))


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def first_line(*command: str) -> str:
    """First line of a program's output; "unknown" without that program, or where it fails."""
    try:
        output = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return output.splitlines()[0].strip() if output.strip() else UNKNOWN


def device_slug(device: str) -> str:
    """A device's name in file names, such as "h200"; "cpu" for a processor."""
    name = first_line("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") if device != "cpu" else device
    name = device if name == UNKNOWN else name
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower().removeprefix("nvidia")).split())


def main() -> None:
    """Runs the stage that the command line names as `module:function`."""
    function, settings, file, seconds = sys.argv[1:]
    os.environ.update(OFFLINE)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.captureWarnings(True)
    module, _, name = function.partition(":")
    pieces = getattr(importlib.import_module(module), name)(Settings(**json.loads(settings)))
    run_pieces(pieces, Path(file), float(seconds))


if __name__ == "__main__":
    main()
