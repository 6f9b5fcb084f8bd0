# SPDX-License-Identifier: Apache-2.0
"""Controllers that learn the times of steps, beside the same controller with the right times, by replay.

    python -m benchmarks.self_timed --out benchmarks/results/self-timed.json

Test prompts as one stream, in several orders. A ratio is total time of the best fixed gamma, tuned on train prompts
under the true times, over total time. The true times are those of cost tables, two shipped and two made up; what a
controller is shown of them may carry noise.
"""

import argparse
import copy
import json
import logging
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.readme_table import line
from speckv.agents.registry import TrainingData, default_settings, make_controller
from speckv.agents.self_timed import SelfTimed
from speckv.agents.survival.controllers import NEVER, SurvivalStopping
from speckv.cost import CostEntry, CostTable
from speckv.cost.times import StepTimes
from speckv.evaluation.replays import compile_pair, tune_fixed
from speckv.files import canonical_json, write_atomically
from speckv.replay import replay_fixed, replay_stream
from speckv.traces import TraceSet, find_traces
from speckv.types import GAMMA_MAX, Controller, StepOutcome

COMPRESSIONS = ("fp16", "int8", "nf4")
RESULT = Path(__file__).resolve().parent / "results" / "self-timed.json"
Shown = Callable[[StepOutcome], StepOutcome]
logger = logging.getLogger(__name__)


def made_up(name: str, draft_s: float, verify_s: Callable[[int], float]) -> CostTable:
    """A cost table from formulae of the width."""
    widths = list(range(1, GAMMA_MAX + 2))
    entries = {
        compression: CostEntry(
            compression=compression,
            dtype="none",
            reference_context=256,
            draft_widths=[1, GAMMA_MAX + 1],
            draft_s=[draft_s, draft_s],
            draft_context_slope_s=0.0,
            verify_widths=widths,
            verify_s=[verify_s(width) for width in widths],
            verify_context_slope_s=0.0,
        )
        for compression in COMPRESSIONS
    }
    return CostTable(name=name, kind="fitted", machine={}, entries=entries)


def truths() -> Mapping[str, CostTable]:
    """Name -> true times."""
    return {
        "cpu-2core": CostTable.load("cpu-2core"),
        "rtx3090-paper": CostTable.load("rtx3090-paper"),
        "draft ratio 0.08, flat verification": made_up("flat", 0.0016, lambda width: 0.02),  # noqa: ARG005
        "verification 1 + 0.25 (width - 1)": made_up("linear", 0.006, lambda width: 0.02 * (1 + 0.25 * (width - 1))),
    }


def whole_steps(outcome: StepOutcome) -> StepOutcome:
    """Hides the times of passes."""
    return replace(outcome, draft_s=0.0, first_draft_s=0.0, verify_s=0.0)


def noisy(seed: int, deviation: float = 0.15, rate: float = 0.01, factor: float = 10.0) -> Shown:
    """Multiplies a step's times by a random factor; some steps are `factor` times as long, in verification."""
    rng = np.random.default_rng(1000 + seed)

    def shown(outcome: StepOutcome) -> StepOutcome:
        scale = math.exp(deviation * rng.standard_normal())
        pause = (factor - 1) * outcome.seconds if rng.random() < rate else 0.0
        return replace(
            outcome,
            seconds=scale * (outcome.seconds + pause),
            draft_s=scale * outcome.draft_s,
            first_draft_s=scale * outcome.first_draft_s,
            verify_s=scale * (outcome.verify_s + pause),
        )

    return shown


def told(fitted: SelfTimed, table: CostTable, compression: str) -> Controller:
    """The same controller with the right times from the start."""
    inner = fitted.inner
    assert isinstance(inner, SurvivalStopping)
    times = StepTimes.of(table, [compression])
    controller = inner.with_times(times)
    steps = times.verify_s[0] + np.arange(GAMMA_MAX + 1) * times.draft_s[0]
    rates = inner.tokens_at_large(0) / steps
    gain = rates[1:].max() / rates[0]
    controller.before.floor[:] = NEVER if gain < 0.97 else 0 if gain < 1.1 else 1
    return controller


def arms(fitted: SelfTimed, online: SelfTimed) -> Mapping[str, tuple[SelfTimed, Callable[[int], Shown]]]:
    """Name -> controller, and what it is shown."""
    return {
        "self-timed": (fitted, lambda _: lambda outcome: outcome),
        "self-timed, whole steps": (fitted, lambda _: whole_steps),
        "self-timed, noise": (fitted, noisy),
        "acceptance and times online": (online, lambda _: lambda outcome: outcome),
    }


def measure(orders: int) -> dict[str, Any]:
    """All ratios: truth -> compression -> arm -> over the stream, over its first ten prompts."""
    traces = TraceSet.load(find_traces("qwen2.5-coder-greedy"))
    train, test = (traces.select(split=split) for split in ("train", "test"))
    data = TrainingData(train=train, cost=CostTable.load("cpu-2core"), seed=0)
    fitted, online = (
        make_controller(name, default_settings(name), data) for name in ("self_timed", "self_timed_online")
    )
    assert isinstance(fitted, SelfTimed)
    assert isinstance(online, SelfTimed)
    found: dict[str, Any] = {}
    for name, table in truths().items():
        gammas = tune_fixed(train, table).best()
        for compression in COMPRESSIONS:
            pair = compile_pair(test.select(compressions=[compression]), table)
            fixed = replay_fixed(*pair, gammas[compression]).seconds
            rows: dict[str, list[tuple[float, float]]] = {}
            for seed in range(orders):
                order = np.random.default_rng(seed).permutation(len(fixed)).tolist()
                runs: dict[str, tuple[Controller, Shown]] = {
                    "right times": (told(fitted, table, compression), lambda outcome: outcome)
                }
                runs |= {arm: (copy.deepcopy(one), show(seed)) for arm, (one, show) in arms(fitted, online).items()}
                for arm, (controller, shown) in runs.items():
                    seconds = replay_stream(controller, *pair, order=order, shown=shown).seconds
                    whole, first = (fixed[order[:k]].sum() / seconds[:k].sum() for k in (len(order), 10))
                    rows.setdefault(arm, []).append((float(whole), float(first)))
            means = {arm: [float(f"{value:.4g}") for value in np.mean(values, axis=0)] for arm, values in rows.items()}
            found.setdefault(name, {})[compression] = {"best_fixed_gamma": gammas[compression], "arms": means}
            logger.info("%s %s: %s", name, compression, means)
    return {"test_prompts": len(test.prompt_ids), "orders": orders, "ratios": found}


def render() -> str:
    """The table in Markdown."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    first = next(iter(next(iter(result["ratios"].values())).values()))["arms"]
    lines = [["true times", "compression", *first], ["---"] * (2 + len(first))]
    for truth, compressions in result["ratios"].items():
        for compression, row in compressions.items():
            cells = [f"{whole:.3f} ({early:.3f})" for whole, early in row["arms"].values()]
            lines.append([truth, compression, *cells])
    return "\n".join(map(line, lines))


def main() -> int:
    """Measures and writes."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/self-timed.json"))
    options = parser.parse_args()
    write_atomically(options.out, canonical_json(measure(options.orders)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
