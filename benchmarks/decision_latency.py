# SPDX-License-Identifier: Apache-2.0
"""How long an exported policy takes to decide, beside the SpecKV paper's scikit-learn network, in one process.

    python -m benchmarks.decision_latency --policy NAME=FOLDER.speckv ... --out benchmarks/results/decision-latency.json

Arms take turns of a hundred calls; medians of single calls are reported. Between two passes of a model caches are
colder, and every figure is higher. `decide` is the controller alone, with its observation at hand; `learn` is what it
learns from a step's times; `session` is everything around it, a step of a request from `begin_step` to `end_step`,
without models; `signals` is the entropy, confidence and margin of one row of scores, which no policy can do without.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from speckv.files import write_atomically
from speckv.models.signals import signals
from speckv.observation import SCHEMA, STOPPING_SCHEMA
from speckv.profiling.machine import describe_machine
from speckv.runtime import Policy, load
from speckv.runtime.signals import signals_of_logits
from speckv.types import StepOutcome, StoppingController

VOCABULARIES = (49_152, 151_936)
ROUNDS, BURST = 40, 100


def arms_of(name: str, policy: Policy, rows: np.ndarray) -> dict[str, Callable[[int], object]]:
    """Calls to be timed for one policy; each is given a running number."""
    controller = policy.controller
    controller.reset()
    starts = rows[:, : SCHEMA.size]
    arms: dict[str, Callable[[int], object]] = {f"{name}: decide": lambda k: controller.act(starts[k % len(rows)])}
    if isinstance(controller, StoppingController):
        arms[f"{name}: decide inside a step"] = lambda k: controller.go_on(rows[k % len(rows)])
    if policy.learns:
        outcomes = [_outcome(drafted) for drafted in (0, 1, 3, 4, 2, 5)]
        arms[f"{name}: learn from a step"] = lambda k: controller.learn(outcomes[k % len(outcomes)])
    session = policy.session(max_new_tokens=10**9)
    session.start(0.5, 0.8)

    def step(_: int) -> None:
        gamma = session.begin_step()
        more, drafted = gamma > 0, 0
        while more and drafted < 4:
            more = session.go_on(0.1, 0.97, 0.95)
            drafted += 1
        session.end_step(drafted, 0.5, 0.8, seconds=0.1)

    arms[f"{name}: session, a step of 4 tokens at most"] = step
    return arms


def _outcome(drafted: int) -> StepOutcome:
    return StepOutcome(
        gamma=drafted,
        num_drafted=drafted,
        num_accepted=drafted // 2,
        num_tested=min(drafted // 2 + 1, drafted),
        num_emitted=drafted // 2 + 1,
        draft_signals=np.full((drafted, 3), 0.5, np.float32),
        target_entropy=0.5,
        target_confidence=0.8,
        seconds=0.1 + 0.04 * drafted,
        draft_s=0.04 * drafted,
        first_draft_s=0.04 if drafted else 0.0,
        verify_s=0.1,
    )


def paper_arm() -> Callable[[int], object] | None:
    """One prediction of a network as the paper's: scikit-learn, two hidden layers of 64, from 6 features."""
    try:
        from sklearn.neural_network import MLPRegressor
    except ImportError:
        return None
    rng = np.random.default_rng(0)
    inputs = rng.random((512, 6))
    model = MLPRegressor(hidden_layer_sizes=(64, 64), max_iter=20).fit(inputs, rng.random(512))
    return lambda k: model.predict(inputs[k % 512 : k % 512 + 1])


def measure(arms: dict[str, Callable[[int], object]]) -> dict[str, float]:
    """Median microseconds of a call, arms taking turns of `BURST` calls, so that caches are warm."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(ROUNDS):
        for name, call in arms.items():
            for k in range(BURST):
                begun = time.perf_counter()
                call(number * BURST + k)
                found[name].append(time.perf_counter() - begun)
    return {name: 1e6 * statistics.median(seconds[len(seconds) // 10 :]) for name, seconds in found.items()}


def _numpy_signals(row: np.ndarray, _: int) -> object:
    return signals_of_logits(row)


def _torch_signals(row: torch.Tensor, _: int) -> object:
    return signals(row)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    rows = rng.uniform(STOPPING_SCHEMA.low, STOPPING_SCHEMA.high, (1000, STOPPING_SCHEMA.size)).astype(np.float32)
    rows[:, SCHEMA.size] = rng.integers(1, 8, 1000) / 16.0
    arms: dict[str, Callable[[int], object]] = {}
    for spec in options.policy:
        name, _, folder = spec.partition("=")
        arms |= arms_of(name, load(folder), rows)
    paper = paper_arm()
    if paper is not None:
        arms["scikit-learn MLP, one predict"] = paper
    scores = {size: rng.normal(size=(1, size)).astype(np.float32) * 3 for size in VOCABULARIES}
    slow: dict[str, Callable[[int], object]] = {}
    for size, row in scores.items():
        slow[f"signals of {size} scores, NumPy"] = partial(_numpy_signals, row[0])
        slow[f"signals of {size} scores, PyTorch"] = partial(_torch_signals, torch.from_numpy(row))
    empty: Callable[[int], object] = lambda _: None  # noqa: E731 - what the timing itself takes
    micros = measure({"nothing": empty, **arms}) | measure(slow)
    result = {
        "what": "median microseconds of one call, arms in turns of 100; that of an empty one, `nothing`, is in all",
        "microseconds": {name: round(value, 3) for name, value in micros.items()},
        "paper_reports_us": 340,
        "threads": 1,
        "machine": describe_machine(),
    }
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    if options.out:
        write_atomically(options.out, text + "\n")


if __name__ == "__main__":
    main()
