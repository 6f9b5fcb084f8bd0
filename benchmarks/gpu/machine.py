# SPDX-License-Identifier: Apache-2.0
"""Stage `machine`: what is measured, on what, and what is missing. Imports torch late: its absence is a finding."""

import importlib.util
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.gpu.settings import Settings
from benchmarks.gpu.stages import ROOT
from benchmarks.gpu.work import Work
from speckv.errors import ConfigError

NEEDED = {
    "accelerate": "accelerate",
    "bitsandbytes": "bitsandbytes",
    "gguf": "gguf",
    "gymnasium": "gymnasium",
    "hydra-core": "hydra",
    "hypothesis": "hypothesis",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "pyarrow": "pyarrow",
    "pytest": "pytest",
    "rich": "rich",
    "sb3-contrib": "sb3_contrib",
    "stable-baselines3": "stable_baselines3",
    "tensorboard": "tensorboard",
    "torch": "torch",
    "transformers": "transformers",
}
"""Distribution -> the module it brings."""


def run(settings: Settings, work: Work) -> None:
    """Looks around."""
    work.piece("packages", packages)
    work.piece("commit", commit)
    work.piece("device", lambda: device(settings))


def packages() -> dict[str, str]:
    """Versions of what the stages import.

    Raises:
        ConfigError: naming what is not installed.
    """
    missing = [name for name, module in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"Expected {', '.join(NEEDED)} to be installed, missing here: {', '.join(missing)}. Carry their wheels in "
            f"and install them without a network: pip install --no-index --find-links WHEELS {' '.join(missing)}"
        )
    return {name: _version(name) for name in NEEDED}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"  # importable, but without a record of its installation


def device(settings: Settings) -> dict[str, Any]:
    """Name, memory and driver of the device, and the machine around it.

    Raises:
        ConfigError: if the device is not there.
    """
    import torch  # late: see above

    from speckv.models.pair import resolve_device
    from speckv.profiling.machine import describe_machine

    where = resolve_device(settings.device)
    found: dict[str, Any] = {"name": device_name(settings), "machine": describe_machine()}
    if where.type == "cuda":
        properties = torch.cuda.get_device_properties(where)
        found |= {
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "driver": driver(),
            "devices": torch.cuda.device_count(),
        }
    return found


def device_name(settings: Settings) -> str:
    """What the device calls itself; "cpu" for a processor."""
    import torch  # late: see above

    return torch.cuda.get_device_name(settings.device) if settings.device.startswith("cuda") else "cpu"


def driver() -> str:
    """Version of the NVIDIA driver, as `nvidia-smi` tells it; "unknown" without that program."""
    return _told(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])


def commit() -> str:
    """The checkout's commit, with `-dirty` where files differ from it; "unknown" in a copy without its history."""
    return _told(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])


def _told(command: list[str]) -> str:
    """First line of what a program prints; "unknown" where there is no such program, or it fails."""
    try:
        told = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return told.stdout.splitlines()[0].strip() if told.stdout.strip() else "unknown"
