# SPDX-License-Identifier: Apache-2.0
"""Clocks of a device. Only subtracting two CUDA instants waits for the device, so it is done at the end of a step."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from speckv.decoding.protocols import Clock


@dataclass(frozen=True, slots=True)
class CudaInstant:
    """An event recorded in a CUDA stream."""

    event: Any

    def __sub__(self, earlier: "CudaInstant") -> float:
        """Seconds since an earlier instant; waits for the device."""
        self.event.synchronize()
        return float(earlier.event.elapsed_time(self.event)) / 1e3


class CudaClock:
    """Reads a CUDA device's time by events in its current stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self) -> CudaInstant:
        """Records an event."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return CudaInstant(event)


def device_clock(device: torch.device) -> Clock:
    """Events on CUDA, `time.perf_counter` elsewhere."""
    return CudaClock(device) if device.type == "cuda" else time.perf_counter
