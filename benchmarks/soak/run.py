# SPDX-License-Identifier: Apache-2.0
"""The soak itself: traffic until time is up, samples on the way, a verdict at the end."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.soak.memory import Watch
from benchmarks.soak.traffic import Traffic

Report = dict[str, Any]
MOST_DIVERGENCES = 10
"""After so many the run ends: more of them say nothing new."""
SPARE_SEQUENCES = 4
"""Cached sequences that may be alive beyond those after the warm-up: what a pool may keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What counts as growth.

    Attributes:
        mb_per_hour: Slope that is allowed.
        resident_mb: Rise of resident memory that is allowed over the whole run; allocators keep some.
        device_mb: The same on the device, whose allocations are counted exactly.
    """

    mb_per_hour: float = 20.0
    resident_mb: float = 24.0
    device_mb: float = 2.0


def soak(
    traffic: Traffic,
    watch: Watch,
    *,
    seconds: float,
    sample_s: float,
    limits: Limits | None = None,
    on_sample: Callable[[Report], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Sends traffic for some time.

    Args:
        traffic: Requests and their check.
        watch: Memory.
        seconds: How long, the warm-up not counted.
        sample_s: Between samples.
        limits: Of growth.
        on_sample: Called with the report so far after each sample.
        clock: Seconds.

    Returns:
        The report; its `verdict` is "ok", or names what was found: "divergence", "growth of resident memory", "growth
        of device memory", "leaked sequences".
    """
    traffic.warm_up()
    allowed = watch.alive() + SPARE_SEQUENCES
    began = clock()
    watch.sample(0.0)
    due = sample_s
    while (gone := clock() - began) < seconds and traffic.counts["divergences"] < MOST_DIVERGENCES:
        traffic.one()
        if gone >= due:
            watch.sample(clock() - began)
            due += sample_s
            on_sample(_report(traffic, watch, clock() - began, allowed, limits or Limits()))
    watch.sample(clock() - began)
    return _report(traffic, watch, clock() - began, allowed, limits or Limits())


def _report(traffic: Traffic, watch: Watch, seconds: float, allowed: int, limits: Limits) -> Report:
    trends = watch.trends()
    most = max(sample.sequences for sample in watch.samples)
    found = {
        "divergence": traffic.counts["divergences"] > 0,
        "growth of resident memory": trends["resident"].grows(limits.mb_per_hour, limits.resident_mb),
        "growth of device memory": trends["device"].grows(limits.mb_per_hour, limits.device_mb),
        "leaked sequences": most > allowed,
    }
    return {
        "verdict": ", ".join(name for name, true in found.items() if true) or "ok",
        "seconds": seconds,
        "requests": dict(traffic.requests),
        "checked_tokens": traffic.checked_tokens,
        "slope_mb_per_hour": trends["resident"].slope_mb_per_hour,
        "num_divergences": traffic.counts["divergences"],
        "divergences": traffic.divergences,
        "num_near_ties": traffic.counts["near_ties"],
        "near_ties": traffic.near_ties,
        "sequences": {"allowed": allowed, "most": most},
        "memory": watch.to_dict(),
    }
