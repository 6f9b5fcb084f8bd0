# SPDX-License-Identifier: Apache-2.0
"""Measures everything that wants a GPU, in 20 minutes at most, into one JSON file; see docs/gpu.md.

    python -m benchmarks.gpu --weights FOLDER
    python -m benchmarks.gpu --stages lossless throughput      (these alone; the others keep what was found before)
    python -m benchmarks.gpu --device cpu --tiny --out /tmp/rehearsal.json      (a rehearsal without a GPU)

Nothing is downloaded. Each stage has a time budget and a process of its own; its failure is recorded, the next one goes
on, and the file is rewritten after each. Without weights, models of the Llama shapes with random weights stand in.
Exit status: 0 if every stage that ran is ok, 1 otherwise.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.settings import OFFLINE, Settings, slug
from benchmarks.gpu.stages import ROOT, STAGES, Report, Runner, Stage, in_process, isolated, run_all
from benchmarks.gpu.work import OK

RESULTS = ROOT / "benchmarks" / "results"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [stage.name for stage in STAGES]
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny random models: a rehearsal")
    parser.add_argument("--weights", default="", help="folder with the Qwen pair's GGUF files, or with their parts")
    parser.add_argument("--stages", nargs="+", choices=names, default=names, metavar="STAGE", help=", ".join(names))
    parser.add_argument(
        "--out", type=Path, help="benchmarks/results/gpu-DEVICE.json by default; cost tables go beside it"
    )
    parser.add_argument("--tests", nargs="+", default=["tests"], help="what pytest collects for the stage tests")
    parser.add_argument("--one-process", action="store_true", help="run stages in this process: quick, unguarded")
    return parser.parse_args(arguments)


def default_out(report: Report) -> Path:
    """The report's file from the device that the stage `machine` found."""
    found = report["stages"].get("machine", {}).get("pieces", {}).get("device", {}).get("found") or {}
    return RESULTS / f"gpu-{slug(found.get('name') or report['device'])}.json"


def chosen(names: Sequence[str], *, named_by_device: bool) -> list[Stage]:
    """Stages in their order; `machine` is run where the report is named after what it finds."""
    return [stage for stage in STAGES if stage.name in names or (named_by_device and stage.name == "machine")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the stages; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse(arguments)
    settings = Settings(
        device=options.device,
        tiny=options.tiny,
        weights=str(Path(options.weights).expanduser().resolve()) if options.weights else "",
        tables=str((options.out.parent if options.out else RESULTS).resolve()),
        tests=tuple(options.tests),
    )
    stages = chosen(options.stages, named_by_device=options.out is None)
    command = " ".join(["python -m benchmarks.gpu", *(sys.argv[1:] if arguments is None else arguments)])
    runner: Runner = in_process if options.one_process else isolated
    report, path = run_all(stages, settings, options.out or default_out, runner=runner, command=command)
    ran = {stage.name: report["stages"][stage.name]["status"] for stage in stages}
    logging.getLogger(__name__).info("%s: %s", path, ", ".join(f"{name} {status}" for name, status in ran.items()))
    return 0 if set(ran.values()) == {OK} else 1


if __name__ == "__main__":
    os.environ.update(OFFLINE)
    sys.exit(main())
