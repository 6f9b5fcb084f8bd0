# SPDX-License-Identifier: Apache-2.0
"""What a measurement was made on."""

import os
import platform
from pathlib import Path


def describe_machine() -> dict[str, str]:
    """Processor, cores, threads in use, memory, system and accelerator, as text."""
    import torch  # here, because a processor has a name where there is no torch, too

    return {
        "processor": processor(),
        "cores": str(os.cpu_count() or 0),
        "threads": str(torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def processor() -> str:
    """Its name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
