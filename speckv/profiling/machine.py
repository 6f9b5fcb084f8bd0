# SPDX-License-Identifier: Apache-2.0
"""Describes the machine of a measurement."""

import platform
import time
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


def busy_cores() -> int:
    """Least number of other threads that run at some instants of a fifth of a second; 0 where it is unknown."""
    path, seen = Path("/proc/loadavg"), list[int]()
    while path.is_file() and len(seen) < 5:
        seen.append(int(path.read_text(encoding="utf-8").split()[3].partition("/")[0]) - 1)
        time.sleep(0.04)
    return max(min(seen, default=0), 0)
