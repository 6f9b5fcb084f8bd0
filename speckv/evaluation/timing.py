# SPDX-License-Identifier: Apache-2.0
"""How long a decision takes here and now: the one thing in a report that no two runs agree on."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speckv.cost import CompiledCost
from speckv.observation import SCHEMA, observe_draft
from speckv.replay import CompiledTraces, replay_policy
from speckv.types import Controller, FloatArray, StoppingController


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionTime:
    """How long one decision takes, in microseconds."""

    controller: str
    p50_us: float
    p99_us: float


def time_decisions(controller: Controller, observations: FloatArray, *, warm_up: int = 100) -> DecisionTime:
    """Times decisions on each observation in turn, one call at a time as a live decoder makes them.

    Args:
        controller: Under test; one that also decides inside steps is asked that as well, as a decision of its own.
        observations: Shape [decisions, features], as `STOPPING_SCHEMA` lists; more than `warm_up` rows.
        warm_up: First calls that are not counted.
    """
    controller.reset()
    seconds: list[float] = []
    stopper = controller if isinstance(controller, StoppingController) else None
    for observation in observations:
        before = observation[: SCHEMA.size]
        start = time.perf_counter()
        controller.act(before)
        seconds.append(time.perf_counter() - start)
        if stopper is not None:
            start = time.perf_counter()
            stopper.go_on(observation)
            seconds.append(time.perf_counter() - start)
    p50, p99 = np.percentile(np.array(seconds[warm_up:]) * 1e6, [50, 99])
    return DecisionTime(controller=controller.name, p50_us=float(p50), p99_us=float(p99))


def sample_observations(compiled: CompiledTraces, cost: CompiledCost, count: int = 2000) -> FloatArray:
    """Observations that a constant gamma meets, each with some draft so far as `STOPPING_SCHEMA` has it, for timing."""
    met: list[FloatArray] = []
    gamma = min(4, compiled.gamma_max)

    def remember(observations: FloatArray) -> NDArray[np.int64]:
        met.append(np.array(observations))
        return np.full(len(observations), gamma, np.int64)

    replay_policy(compiled, cost, remember)
    rows = np.concatenate(met)
    places = np.arange(count)
    drafts = compiled.drafts[places % len(compiled.drafts), 1 + places % max(compiled.gamma_max - 1, 1)]
    return observe_draft(rows[places % len(rows)], drafts)
