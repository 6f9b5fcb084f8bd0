# SPDX-License-Identifier: Apache-2.0
"""Whether memory stays flat: resident bytes, bytes on the device, and cached sequences that are still alive."""

import gc
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

MB = 1e6
HOUR_S = 3600.0
WARM_UP_SHARE = 0.2
"""Share of the samples, at the start, that no line is fitted to: allocators fill their arenas there."""
SURE = 3.0
"""Standard errors that a slope must lie above its limit to count as growth."""
FEWEST = 5
"""Samples that a line is fitted to, at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Memory at one time, garbage collected.

    Attributes:
        at_s: Seconds since the run began.
        resident_bytes: Of this process.
        device_bytes: Allocated on the device by torch; 0 without one.
        sequences: Cached sequences that are alive.
    """

    at_s: float
    resident_bytes: int
    device_bytes: int
    sequences: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """A line through samples.

    Attributes:
        slope_mb_per_hour: Of the least-squares line.
        standard_error_mb_per_hour: Of that slope.
        rise_mb: What the line rises by from the first sample it was fitted to to the last.
        samples: It was fitted to.
    """

    slope_mb_per_hour: float
    standard_error_mb_per_hour: float
    rise_mb: float
    samples: int

    def grows(self, limit_mb_per_hour: float, least_mb: float) -> bool:
        """Whether memory grows for certain, and by more than an allocator's unrest."""
        sure = self.slope_mb_per_hour - SURE * self.standard_error_mb_per_hour > limit_mb_per_hour
        return self.samples >= FEWEST and sure and self.rise_mb > least_mb


def trend(at_s: Sequence[float], held: Sequence[int]) -> Trend:
    """Fits a line, warm-up left out.

    Args:
        at_s: Seconds.
        held: Bytes at those times.

    >>> trend([0, 900, 1800, 2700, 3600], [0, 10**6, 2 * 10**6, 3 * 10**6, 4 * 10**6]).slope_mb_per_hour
    4.0
    """
    skip = int(WARM_UP_SHARE * len(at_s))
    x, y = np.array(at_s[skip:], float) / HOUR_S, np.array(held[skip:], float) / MB
    if len(x) < 3:
        return Trend(slope_mb_per_hour=0.0, standard_error_mb_per_hour=0.0, rise_mb=0.0, samples=len(x))
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - slope * centred
    error = float(np.sqrt(rest @ rest / (len(x) - 2) / (centred @ centred)))
    return Trend(
        slope_mb_per_hour=slope,
        standard_error_mb_per_hour=error,
        rise_mb=slope * float(x[-1] - x[0]),
        samples=len(x),
    )


class Watch:
    """Takes samples.

    Args:
        kinds: Classes of cached sequences.
        device: Where models run.
    """

    def __init__(self, kinds: Sequence[type], device: torch.device) -> None:
        self._kinds, self._device = frozenset(kinds), device
        self.samples: list[Sample] = []

    def alive(self) -> int:
        """Cached sequences that something still holds."""
        gc.collect()
        return sum(type(thing) in self._kinds for thing in gc.get_objects())

    def sample(self, at_s: float) -> Sample:
        """Collects garbage and looks."""
        sequences = self.alive()
        on_device = torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0
        found = Sample(at_s=at_s, resident_bytes=resident_bytes(), device_bytes=on_device, sequences=sequences)
        self.samples.append(found)
        return found

    def trends(self) -> dict[str, Trend]:
        """Lines through resident and device bytes."""
        at_s = [sample.at_s for sample in self.samples]
        return {
            "resident": trend(at_s, [sample.resident_bytes for sample in self.samples]),
            "device": trend(at_s, [sample.device_bytes for sample in self.samples]),
        }

    def to_dict(self) -> dict[str, Any]:
        """Renders samples and lines for a report."""
        return {
            "samples": [asdict(sample) for sample in self.samples],
            "trends": {name: asdict(line) for name, line in self.trends().items()},
        }


def resident_bytes() -> int:
    """Resident memory of this process; where the system does not tell, the most it ever was."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
