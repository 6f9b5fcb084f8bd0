# SPDX-License-Identifier: Apache-2.0
"""Stage `machine`: what is measured, on what, and what is missing. Imports torch late: its absence is a finding."""

import os
import subprocess
from typing import Any

from benchmarks.gpu.packages import check_packages
from benchmarks.gpu.settings import ROOT, Settings
from benchmarks.gpu.work import Work

UNKNOWN = "unknown"


def run(settings: Settings, work: Work) -> None:
    """Looks around."""
    work.piece("packages", check_packages)
    work.piece("commit", commit)
    work.piece("device", lambda: device(settings))


def device(settings: Settings) -> dict[str, Any]:
    """Name, memory and driver of the device, and the machine around it.

    Raises:
        ConfigError: if the device is not there.
    """
    import torch  # late: see above

    from speckv.models.pair import resolve_device
    from speckv.profiling.machine import describe_machine

    where = resolve_device(settings.device)
    found: dict[str, Any] = {"name": device_name(settings), "machine": describe_machine(where)}
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
    """The checkout's commit, with `-dirty` where files differ from it.

    A copy without its history has the one that the variable `SPECKV_COMMIT` names, else "unknown".
    """
    told = _told(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
    return told if told != UNKNOWN else os.environ.get("SPECKV_COMMIT") or UNKNOWN


def _told(command: list[str]) -> str:
    """First line of what a program prints; "unknown" where there is no such program, or it fails."""
    try:
        told = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return told.stdout.splitlines()[0].strip() if told.stdout.strip() else UNKNOWN
