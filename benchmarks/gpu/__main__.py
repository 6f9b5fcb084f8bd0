# SPDX-License-Identifier: Apache-2.0
"""Measures everything that wants a GPU, in 20 minutes at most, into one JSON file; see docs/gpu.md.

    python -m benchmarks.gpu --weights FOLDER
    python -m benchmarks.gpu --minutes 9      (below 15, each stage does what matters most)
    python -m benchmarks.gpu --stages lossless throughput      (these alone; the others keep what was found before)
    python -m benchmarks.gpu --device cpu --tiny --out /tmp/rehearsal.json      (a rehearsal without a GPU)

Nothing is downloaded. Each stage has a share of the time and a process of its own; its failure is recorded, the next
one goes on, and the file is rewritten after each. Without weights, models of the Llama shapes with random weights stand
in. Exit status: 0 if every stage that was asked for is ok, 2 if the time cannot be enough for them, 128 and the
signal's number if one ended the run, 1 otherwise.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.gpu.process import in_process, isolated, signals_noted
from benchmarks.gpu.report import Report
from benchmarks.gpu.settings import OFFLINE, ROOT, Settings, slug
from benchmarks.gpu.stages import STAGES, Runner, Stage, chosen, require_time, run_all
from benchmarks.gpu.work import OK
from speckv.errors import ConfigError

logger = logging.getLogger(__name__)
RESULTS = ROOT / "benchmarks" / "results"
SHORT_MINUTES = 15.0
"""Below these, stages leave out what matters least."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [stage.name for stage in STAGES]
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny random models: a rehearsal")
    parser.add_argument("--weights", default="", help="folder with the Qwen pair's GGUF files, or with their parts")
    parser.add_argument("--minutes", type=float, default=20.0, help="for all stages together (default: %(default)g)")
    parser.add_argument("--stages", nargs="+", choices=names, default=names, metavar="STAGE", help=", ".join(names))
    parser.add_argument(
        "--out", type=Path, help="benchmarks/results/gpu-DEVICE.json by default; cost tables go beside it"
    )
    parser.add_argument("--tests", nargs="+", default=["tests"], help="where the stage tests looks for tests")
    parser.add_argument("--one-process", action="store_true", help="run stages in this process: quick, unguarded")
    return parser.parse_args(arguments)


def default_out(report: Report) -> Path:
    """The report's file from the device that the stage `machine` found."""
    found = report["stages"].get("machine", {}).get("pieces", {}).get("device", {}).get("found") or {}
    return RESULTS / f"gpu-{slug(found.get('name') or report['device'])}.json"


def read_settings(options: argparse.Namespace) -> Settings:
    """What the stages are told."""
    return Settings(
        device=options.device,
        tiny=options.tiny,
        short=options.minutes < SHORT_MINUTES,
        weights=str(Path(options.weights).expanduser().resolve()) if options.weights else "",
        tables=str((options.out.parent if options.out else RESULTS).resolve()),
        tests=tuple(options.tests),
    )


def named_places(options: argparse.Namespace, settings: Settings) -> dict[str, str]:
    """Folders that the user named, as typed and resolved -> what stands for them in the report."""
    places = {options.weights: "WEIGHTS", settings.weights: "WEIGHTS"}
    if options.out:
        places |= {str(options.out.parent): "OUT", settings.tables: "OUT"}
    return {place.rstrip("/"): name for place, name in places.items() if Path(place).is_absolute()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the stages; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse(arguments)
    stages = chosen(options.stages, named_by_device=options.out is None, weights=bool(options.weights))
    try:
        require_time(stages, options.minutes)
    except ConfigError as error:
        logger.error("%s", error)
        return 2
    command = " ".join(["python -m benchmarks.gpu", *(sys.argv[1:] if arguments is None else arguments)])
    return run(stages, options, command)


def run(stages: Sequence[Stage], options: argparse.Namespace, command: str) -> int:
    """Runs stages as the command line says; returns the exit status."""
    settings = read_settings(options)
    out = options.out or default_out
    places = named_places(options, settings)
    go = partial(run_all, stages, settings, out, command=command, minutes=options.minutes, places=places)
    if options.one_process:
        _, path, ran = go(runner=in_process)
        return _told(path, ran)
    with signals_noted() as stop:
        runner: Runner = partial(isolated, stop=stop)
        _, path, ran = go(runner=runner, stop=stop)
        status = _told(path, ran)
        return 128 + stop[0] if stop else status


def _told(path: Path, ran: dict[str, str]) -> int:
    logger.info("%s: %s", path, ", ".join(f"{name} {status}" for name, status in ran.items()))
    return 0 if set(ran.values()) == {OK} else 1


if __name__ == "__main__":
    os.environ.update(OFFLINE)
    sys.exit(main())
