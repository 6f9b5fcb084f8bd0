# SPDX-License-Identifier: Apache-2.0
"""Times the environments on one core: steps a second of the vector environment against the scalar one.

Run from the checkout: `python -m benchmarks.env_throughput`. The recordings are random; what they hold does not change
the work, and nothing in it runs on more than one thread. Arms take turns in one process and medians are reported,
because a shared machine only ever adds time.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np

from speckv.cores import usable_cores
from speckv.envs import GammaSelectionEnv, GammaSelectionVectorEnv
from tests.fakes_traces import make_cost_table, random_traces

RESULTS = Path(__file__).parent / "results" / "env_throughput.json"
SIZES = (64, 256, 1024)


def time_scalar(env: GammaSelectionEnv, actions: np.ndarray) -> float:
    """Returns seconds an environment step, resets included."""
    start = time.perf_counter()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return (time.perf_counter() - start) / len(actions)


def time_vector(envs: GammaSelectionVectorEnv, actions: np.ndarray) -> float:
    """Returns seconds an environment step, resets included."""
    start = time.perf_counter()
    for row in actions:
        envs.step(row)
    return (time.perf_counter() - start) / actions.size


def measure(rounds: int, steps: int, seed: int) -> dict[str, list[float]]:
    """Returns seconds an environment step for each arm, one a round; a first round warms up and is dropped."""
    traces = random_traces(num_prompts=200, max_new_tokens=160, seed=seed)
    cost, rng = make_cost_table(), np.random.default_rng(seed)
    scalar = GammaSelectionEnv(traces=traces, cost=cost)
    scalar.reset(seed=seed)
    few = rng.integers(0, 17, 2 * steps)
    arms: dict[str, Callable[[], float]] = {"scalar": partial(time_scalar, scalar, few)}
    for size in SIZES:
        envs = GammaSelectionVectorEnv(size, traces=traces, cost=cost)
        envs.reset(seed=seed)
        actions = rng.integers(0, 17, (steps, size))
        arms[f"vector-{size}"] = partial(time_vector, envs, actions)
    times: dict[str, list[float]] = {name: [] for name in arms}
    for round_ in range(rounds + 1):
        for name, arm in arms.items():
            seconds = arm()
            if round_ > 0:
                times[name].append(seconds)
    return times


def main() -> None:
    """Measures, prints a table and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds; the median is reported")
    parser.add_argument("--steps", type=int, default=400, help="steps of each vector environment a round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    times = measure(arguments.rounds, arguments.steps, arguments.seed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    arms = {
        name: {
            "steps_per_second": round(1.0 / median),
            "microseconds_per_step": round(median * 1e6, 3),
            "spread": round((max(times[name]) - min(times[name])) / median, 3),
            "times_scalar": round(medians["scalar"] / median, 1),
        }
        for name, median in medians.items()
    }
    versions = {"python": platform.python_version(), "numpy": np.__version__, "gymnasium": gym.__version__}
    machine = {"machine": platform.machine(), "system": platform.system(), "threads": 1, "cpus": usable_cores()}
    settings = {"rounds": arguments.rounds, "steps": arguments.steps, "seed": arguments.seed}
    record = {"benchmark": "env_throughput", "arms": arms, "settings": settings, "versions": versions} | machine
    sys.stdout.write(f"{'arm':<12} {'steps/s':>12} {'us/step':>10} {'x scalar':>9} {'spread':>7}\n")
    for name, arm in arms.items():
        sys.stdout.write(
            f"{name:<12} {arm['steps_per_second']:>12,} {arm['microseconds_per_step']:>10.3f} "
            f"{arm['times_scalar']:>9.1f} {arm['spread']:>7.2f}\n"
        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
