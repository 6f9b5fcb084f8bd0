# SPDX-License-Identifier: Apache-2.0
"""Clocks of a device: the host's on a CPU, events in the stream on CUDA.

Recording an event costs the host nothing. Subtracting two instants waits for the later one, so it is done at the end of
a step.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch

from speckv.decoding.protocols import Clock


@dataclass(frozen=True, slots=True)
class CudaInstant:
    """An event recorded in the stream that was current when the clock was read."""

    event: Any

    def __sub__(self, earlier: "CudaInstant") -> float:
        """Seconds from an earlier instant to this one; waits for the device to get here."""
        self.event.synchronize()
        return float(earlier.event.elapsed_time(self.event)) / 1e3


class CudaClock:
    """Reads a CUDA device's time by events; everything enqueued before an instant is done by then."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self) -> CudaInstant:
        """Records an event in the device's current stream."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return CudaInstant(event)


def device_clock(device: torch.device) -> Clock:
    """The clock of a device: events on CUDA, `time.perf_counter` elsewhere, where work is done when a call returns."""
    return CudaClock(device) if device.type == "cuda" else time.perf_counter
