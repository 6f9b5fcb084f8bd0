# SPDX-License-Identifier: Apache-2.0
"""Stages before the measurements: `machine`, `weights` and `tests`. Heavy imports are late, as one may be missing."""

import os
import re
import subprocess
import sys
import time
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from benchmarks.gpu.stage import ROOT, UNKNOWN, Piece, Settings, first_line
from benchmarks.weights import MANIFEST, join
from speckv.errors import ConfigError, DataError, SpecKVError

BY_BUILD = ("cuda", "nvidia", "triton")
"""Prefixes of packages that torch requires by its build."""


def machine(settings: Settings) -> dict[str, Piece]:
    """Packages, commit and device."""
    return {
        "packages": lambda _: check_packages(required()),
        "commit": lambda _: commit(),
        "device": lambda _: describe_device(settings.device),
    }


def required() -> list[str]:
    """Requirements of the stages by pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    tools = [line for line in extras["test"] if line.startswith(("hypothesis", "pytest"))]
    return [*project["dependencies"], *extras["models"], *tools]


def check_packages(lines: list[str]) -> dict[str, str]:
    """Versions of required packages; a `ConfigError` names all that are missing or of another version."""
    from packaging.requirements import Requirement

    found: dict[str, str] = {}
    wrong: list[str] = []
    queue = [(line, "") for line in lines]
    while queue:
        line, needed_by = queue.pop(0)
        need = Requirement(line)
        if need.name in found or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        try:
            found[need.name] = version(need.name)
        except PackageNotFoundError:
            found[need.name] = "missing"
            wrong.append(f"{line} (missing{', needed by ' * bool(needed_by)}{needed_by})")
            continue
        if not needed_by and not need.specifier.contains(found[need.name], prereleases=True):
            wrong.append(f"{line} (found {found[need.name]})")
        queue += [
            (n, need.name) for n in requires(need.name) or [] if need.name != "torch" or not n.startswith(BY_BUILD)
        ]
    if wrong:
        raise ConfigError(
            f"Expected every package that pyproject.toml requires, got {'; '.join(wrong)}. Bring wheels and install "
            "them: pip install --no-index --no-deps --find-links WHEELS NAME"
        )
    return found


def commit() -> str:
    """The checkout's commit, with `-dirty` where files differ; `SPECKV_COMMIT` names that of a copy without `.git`."""
    found = first_line("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    return found if found != UNKNOWN else os.environ.get("SPECKV_COMMIT") or UNKNOWN


def describe_device(device: str) -> dict[str, Any]:
    """Memory and driver of the device, and the machine around it."""
    import torch

    from speckv.models.pair import resolve_device
    from speckv.profiling.machine import describe_machine

    where = resolve_device(device)
    found: dict[str, Any] = {"machine": describe_machine(where)}
    if where.type == "cuda":
        properties = torch.cuda.get_device_properties(where)
        found |= {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "driver": first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "devices": torch.cuda.device_count(),
        }
    return found


def weights(settings: Settings) -> dict[str, Piece]:
    """Joins what was carried in parts, verifies it, and converts it once, before anything is timed."""
    if not settings.weights:
        return {"files": lambda _: "no folder was given: random weights in the shapes of Llama are measured"}
    folder = Path(settings.weights)
    joined: dict[str, Piece] = {}
    if (folder / MANIFEST).is_file():
        joined = {"join": lambda _: [path.name for path in join(folder, folder)]}
    return joined | {"files": lambda _: prepare_weights(folder, convert=not settings.tiny)}


def prepare_weights(folder: Path, *, convert: bool) -> list[str]:
    """Names of the Qwen pair's files, converted once; a `DataError` names those that are missing."""
    from benchmarks import qwen
    from speckv.models.gguf import converted_folder

    paths = qwen.files(folder)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"Expected the Qwen pair's files in {folder}, missing: {', '.join(missing)}. Bring them, or their parts "
            f"with {MANIFEST} (python -m benchmarks.weights split); or leave out --weights."
        )
    return [converted_folder(path).name if convert else path.name for path in paths]


class GpuTestsError(SpecKVError, RuntimeError):
    """Tests failed, took too long, or none were found."""


def gpu_tests(settings: Settings) -> dict[str, Piece]:
    """Runs the tests marked `gpu`; on a CPU they skip themselves."""
    return {"pytest": lambda end: run_pytest(settings, end - time.monotonic())}


def run_pytest(settings: Settings, timeout_s: float) -> dict[str, Any]:
    """Pytest's summary and the skipped tests."""
    files = [place for place in settings.tests if Path(ROOT, place).is_file()]
    for folder in settings.tests:  # importing all files would take longer than running the marked tests
        found = sorted(Path(ROOT, folder).rglob("test_*.py"))
        files += [str(path) for path in found if "mark.gpu" in path.read_text(encoding="utf-8")]
    options = ["-mgpu", "-v", "-ra", "--color=no", "-pno:cacheprovider", "-oaddopts=--import-mode=importlib"]
    command = [sys.executable, "-m", "pytest", *options, *(files or settings.tests)]
    try:
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode(errors="replace")[-1500:]
        raise GpuTestsError(f"Expected pytest to end within {timeout_s:.0f} s, its output so far: {output}") from None
    lines = ended.stdout.strip().splitlines() or [""]
    if ended.returncode or (settings.device != "cpu" and not re.search(r"\d passed", lines[-1])):
        output = (ended.stdout + ended.stderr)[-1500:]
        raise GpuTestsError(f"Expected tests to pass on {settings.device}, got status {ended.returncode}: {output}")
    return {"summary": lines[-1].strip("= "), "skipped": [line for line in lines if line.startswith("SKIPPED ")]}
