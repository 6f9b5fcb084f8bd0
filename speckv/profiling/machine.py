# SPDX-License-Identifier: Apache-2.0
"""Describes the machine of a measurement."""

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from speckv.cores import usable_cores

if TYPE_CHECKING:
    import torch


def describe_machine(device: "torch.device | None" = None) -> dict[str, str]:
    """Processor, usable cores, threads, system and accelerator (by default the current one), as text."""
    import torch  # late: `processor` needs no torch

    cuda = device if device is not None and device.type == "cuda" else None

    return {
        "processor": processor(),
        "cores": str(usable_cores()),
        "threads": str(torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "accelerator": torch.cuda.get_device_name(cuda) if torch.cuda.is_available() else "none",
    }


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def load_and_cores() -> tuple[float, int]:
    """Mean number of running processes in the last minute, 0 where it is unknown, and the number of cores."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return load, os.cpu_count() or 1
