# SPDX-License-Identifier: Apache-2.0
"""Runs every measurement that needs a GPU, in 20 minutes at most, into one JSON file; see docs/gpu.md.

    python -m benchmarks.gpu --weights FOLDER
    python -m benchmarks.gpu --minutes 9      (below 15, each stage leaves out what matters least)
    python -m benchmarks.gpu --stages lossless throughput      (the file keeps what the others found before)
    python -m benchmarks.gpu --device cpu --tiny --out /tmp/rehearsal.json      (a rehearsal without a GPU)

Nothing is downloaded. Each stage is a process with a time limit, and the file is rewritten after each. Without weights,
random models of the Llama shapes are measured. Exit status: 0 if every stage is ok, 130 if interrupted, 1 otherwise.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.stage import OFFLINE, ROOT, STAGES, Settings, device_slug
from speckv.files import write_atomically

logger = logging.getLogger(__name__)
RESULTS = ROOT / "benchmarks" / "results"
SHORT_MINUTES = 15.0
"""Below these, stages leave out what matters least."""
PIECES_SHARE = 0.85
"""Share of a stage's limit after which it begins no other piece."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny random models: a rehearsal")
    parser.add_argument("--weights", default="", help="folder with the Qwen pair's GGUF files, or with their parts")
    parser.add_argument("--minutes", type=float, default=20.0, help="for all stages together (default: %(default)g)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=[*STAGES], metavar="STAGE", help=str([*STAGES]))
    parser.add_argument("--out", type=Path, help="benchmarks/results/gpu-DEVICE.json by default; tables go beside it")
    parser.add_argument("--tests", nargs="+", default=["tests"], help="where the stage tests looks for tests")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the stages; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse(arguments)
    out = options.out or RESULTS / f"gpu-{device_slug(options.device)}.json"
    settings = Settings(
        device=options.device,
        tiny=options.tiny,
        short=options.minutes < SHORT_MINUTES,
        weights=str(Path(options.weights).expanduser().resolve()) if options.weights else "",
        tables=str(out.parent.resolve()),
        tests=options.tests,
    )
    command = " ".join(["python -m benchmarks.gpu", *(sys.argv[1:] if arguments is None else arguments)])
    earlier = json.loads(out.read_text(encoding="utf-8"))["stages"] if out.is_file() else {}
    meaning = "a rehearsal: no number here means anything" if settings.tiny else "batch 1, one device"
    report = {"what": f"SpecKV on one accelerator; {meaning}", "device": settings.device, "stages": earlier}
    end = time.monotonic() + 60 * options.minutes
    names = [name for name in STAGES if name in options.stages]
    for number, name in enumerate(names):
        rest = [STAGES[later].share_s for later in names[number:]]
        limit_s = (end - time.monotonic()) * rest[0] / sum(rest)  # unspent time goes to the later stages
        about = {"what": STAGES[name].what, "command": command, "short": settings.short, "limit_s": round(limit_s, 1)}
        entry = run_stage(name, settings, out.with_name(f"{out.stem}.{name}.part.json"), limit_s)
        earlier[name] = about | entry
        write_atomically(out, without_places(json.dumps(report, indent=1) + "\n", settings))
        log_entry(name, entry)
        if entry.get("error") == "interrupted":
            return 130
    logger.info("wrote %s", out)
    return 0 if all(earlier[name]["status"] == "ok" for name in names) else 1


def run_stage(name: str, settings: Settings, part: Path, limit_s: float) -> dict[str, Any]:
    """Runs a stage in a process, which is killed at the time limit and rewrites the file `part` after each piece.

    Returns:
        The stage's entry in the report, with the pieces that were measured until the process ended.
    """
    logger.info("%s: %s, at most %.0f s", name, STAGES[name].what, limit_s)
    part.parent.mkdir(parents=True, exist_ok=True)
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
    arguments = [STAGES[name].function, json.dumps(asdict(settings)), str(part), str(PIECES_SHARE * limit_s)]
    error = ""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "benchmarks.gpu.stage", *arguments],
            cwd=ROOT,
            env={**os.environ, **OFFLINE},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            if code := process.wait(limit_s):
                error = f"its process ended with status {code}"
        except subprocess.TimeoutExpired:
            error = f"stopped at its limit of {limit_s:.0f} s"
        except KeyboardInterrupt:
            error = "interrupted"
        finally:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # a process inside a driver call may never end
                process.wait(30)
        log.seek(0)
        lines = log.read()[-4000:].splitlines()
    found = {"pieces": {}, "warnings": []} | (json.loads(part.read_text(encoding="utf-8")) if part.is_file() else {})
    for path in [part, *part.parent.glob(f".{part.name}.*")]:
        path.unlink(missing_ok=True)
    for piece in found["pieces"].values():
        if piece["status"] == "running":
            piece |= {"status": "error", "error": error}
    statuses = {piece["status"] for piece in found["pieces"].values()}
    ok = not error and statuses and "error" not in statuses
    status = ("partial" if "skipped" in statuses else "ok") if ok else "error"
    about = {"status": status, "began": began[0], "seconds": time.monotonic() - began[1]}
    return about | ({"error": error} if error else {}) | found | ({} if ok else {"log": lines})


def log_entry(name: str, entry: dict[str, Any]) -> None:
    """Logs a stage's status, and what failed or was warned of."""
    logger.info("%s: %s after %.1f s %s", name, entry["status"], entry["seconds"], entry.get("error", ""))
    for key, piece in entry["pieces"].items():
        if "error" in piece:
            logger.info("  %s: %s: %s", key, piece["status"], piece["error"])
    for text in entry["warnings"]:
        logger.info("  warning: %s", text)


def without_places(text: str, settings: Settings) -> str:
    """Replaces folders of this machine in a report, which is to be published.

    >>> without_places("/srv/models/a.gguf", Settings(weights="/srv/models"))
    'WEIGHTS/a.gguf'
    """
    places = {
        settings.weights: "WEIGHTS",
        settings.tables: "OUT",
        str(ROOT): ".",
        sys.prefix: "PYTHON",
        str(Path.home()): "~",
        tempfile.gettempdir(): "TMP",
    }
    for place in sorted(places, key=len, reverse=True):  # a folder before the one that contains it
        if len(place) > 1:
            text = text.replace(place, places[place])
    return text


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
