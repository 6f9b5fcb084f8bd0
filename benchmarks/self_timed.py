# SPDX-License-Identifier: Apache-2.0
"""Controllers that learn the times of steps, beside the same controller with the right times, by replay.

    python -m benchmarks.self_timed --out benchmarks/results/self-timed.json

Test prompts as one stream, in several orders, each begun without any knowledge of times. True times are those of cost
tables, two shipped and others made up; what a controller is shown of them may be distorted, and they may change in the
middle. The supervised policy is the shipped one.
"""

import argparse
import copy
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.clocks import (
    COMPRESSIONS,
    FLAT,
    LINEAR,
    NEVER_PAYS,
    Load,
    Shown,
    Steps,
    as_it_is,
    coarse,
    consumer,
    idle,
    noisy,
    stream_s,
    told,
    whole_steps,
)
from benchmarks.readme_table import line
from speckv.agents.registry import TrainingData, default_settings, make_controller
from speckv.agents.self_timed import SelfTimed
from speckv.cost import CostTable
from speckv.evaluation.replays import compile_pair, tune_fixed
from speckv.files import canonical_json, write_atomically
from speckv.replay import replay_fixed, replay_stream
from speckv.runtime import Policy
from speckv.traces import TraceSet, find_traces
from speckv.types import Controller

Float64 = NDArray[np.float64]
RESULT = Path(__file__).resolve().parent / "results" / "self-timed.json"
PICTURE = RESULT.with_suffix(".png")
BIN = 75
"""Tokens of a bin in the study of changes: those of some 30 steps."""
BINS = (-4, 12)
EARLY = 10
"""Prompts of the first part of a stream, and of a window."""
logger = logging.getLogger(__name__)


def truths() -> Mapping[str, CostTable]:
    """Name -> true times."""
    return {
        "cpu-2core": CostTable.load("cpu-2core"),
        "rtx3090-paper": CostTable.load("rtx3090-paper"),
        "draft ratio 0.08, flat verification": FLAT,
        "verification 1 + 0.25 (width - 1)": LINEAR,
        "draft ratio 0.9": NEVER_PAYS,
    }


def modes(table: CostTable, compression: str) -> Mapping[str, Callable[[int], Shown]]:
    """Name -> distortion for a seed."""
    draft_s = float(table.entries[compression].draft_s[0])
    return {
        "the caller's work inside the step, a fifth of a plain step a token": lambda _: consumer(0.2),
        "load doubles and halves every 20 steps": lambda _: Load(),
        "3 % of steps pause for 50": idle,
        "30 % noise": lambda seed: noisy(seed, 0.3, 0.0),
        "a clock coarser than a draft pass": lambda seed: coarse(1.5 * draft_s, seed),
    }


CHANGES = {
    "ratio 0.08 to linear verification": (FLAT, LINEAR, "fp16"),
    "drafting never pays, then ratio 0.08": (NEVER_PAYS, FLAT, "fp16"),
    "ratio 0.08, then drafting never pays": (FLAT, NEVER_PAYS, "fp16"),
    "cpu-2core to rtx3090-paper": (CostTable.load("cpu-2core"), CostTable.load("rtx3090-paper"), "nf4"),
}
"""Name -> times before and after, compression."""


class Study:
    """Test prompts of one recording in several orders."""

    def __init__(self, orders: int) -> None:
        traces = TraceSet.load(find_traces("qwen2.5-coder-greedy"))
        self.train, self.test = (traces.select(split=split) for split in ("train", "test"))
        self.seeds = range(orders)
        data = TrainingData(train=self.train, cost=CostTable.load("cpu-2core"), seed=0)
        fitted = Policy.load("shipped").controller
        online = make_controller("self_timed_online", default_settings("self_timed_online"), data)
        assert isinstance(fitted, SelfTimed)
        assert isinstance(online, SelfTimed)
        self.fitted, self.online = fitted, online

    def pair(self, table: CostTable, compression: str) -> tuple[Any, Any]:
        """Compiled test prompts."""
        return compile_pair(self.test.select(compressions=[compression]), table)

    def order(self, seed: int) -> list[int]:
        """An order of the prompts."""
        return [int(place) for place in np.random.default_rng(seed).permutation(len(self.test.prompt_ids))]

    # -- constant times -----------------------------------------------------------------------------------------------

    def arms(self) -> Mapping[str, tuple[SelfTimed, Callable[[int], Shown]]]:
        """Name -> controller, and what it is shown."""
        return {
            "self-timed": (self.fitted, lambda _: as_it_is),
            "whole steps": (self.fitted, lambda _: whole_steps),
            "noise": (self.fitted, noisy),
            "nothing trained": (self.online, lambda _: as_it_is),
        }

    def constant(self, table: CostTable) -> dict[str, Any]:
        """Compression -> arm -> speed-up over the best fixed gamma: whole stream, first prompts, worst window."""
        gammas, found = tune_fixed(self.train, table).best(), dict[str, Any]()
        for compression in COMPRESSIONS:
            pair = self.pair(table, compression)
            fixed = replay_fixed(*pair, gammas[compression]).seconds
            rows: dict[str, list[tuple[float, float, float]]] = {}
            for seed in self.seeds:
                order = self.order(seed)
                runs: dict[str, tuple[Controller, Shown]] = {
                    "right times": (told(self.fitted, table, compression), as_it_is)
                }
                runs |= {arm: (copy.deepcopy(one), show(seed)) for arm, (one, show) in self.arms().items()}
                for arm, (controller, shown) in runs.items():
                    seconds = replay_stream(controller, *pair, order=order, shown=shown).seconds
                    rows.setdefault(arm, []).append(_ratios(fixed[order], seconds))
            arms = {arm: [float(f"{value:.4g}") for value in np.mean(values, axis=0)] for arm, values in rows.items()}
            found[compression] = {"best_fixed_gamma": gammas[compression], "arms": arms}
        return found

    # -- distorted times ----------------------------------------------------------------------------------------------

    def distorted(self, table: CostTable, compression: str) -> dict[str, list[float]]:
        """Mode -> true time with the right times over that with learned ones, from passes and from whole steps."""
        pair, found = self.pair(table, compression), dict[str, list[float]]()
        right = stream_s(told(self.fitted, table, compression), pair, self.order(0))
        for mode, make in modes(table, compression).items():
            ratios = []
            for hide in (as_it_is, whole_steps):
                seconds = []
                for seed in self.seeds:
                    shown = make(seed)
                    controller = copy.deepcopy(self.fitted)
                    seconds.append(stream_s(controller, pair, self.order(seed), lambda o, s=shown, h=hide: h(s(o))))  # type: ignore[misc]
                ratios.append(round(right / float(np.mean(seconds)), 4))
            found[mode] = ratios
        return found

    # -- times that change --------------------------------------------------------------------------------------------

    def change(self, first: CostTable, second: CostTable, compression: str) -> dict[str, list[float]]:
        """Arm -> speed in bins of tokens around the change, over that of the arm that is told both times."""
        sums: dict[str, Float64] = {}
        pairs = [self.pair(table, compression) for table in (first, second)]
        for seed in self.seeds:
            order = self.order(seed)
            halves = order[: len(order) // 2], order[len(order) // 2 :]
            arms: dict[str, Sequence[Controller]] = {
                "told both": [told(self.fitted, table, compression) for table in (first, second)],
                "told the first": [told(self.fitted, first, compression)] * 2,
                "self-timed": [copy.deepcopy(self.fitted)] * 2,
            }
            for arm, controllers in arms.items():
                recorded = [Steps(), Steps()]
                for controller, pair, half, steps in zip(controllers, pairs, halves, recorded, strict=True):
                    replay_stream(controller, *pair, order=half, shown=steps)
                sums[arm] = sums.get(arm, np.zeros(BINS[1] - BINS[0])) + _binned(*recorded)
        return {arm: [float(f"{v:.4g}") for v in sums["told both"] / seconds] for arm, seconds in sums.items()}


def _ratios(fixed: Float64, mine: Float64) -> tuple[float, float, float]:
    """Over the stream, the first prompts, and the worst run of as many; both in the stream's order."""
    window = np.ones(EARLY)
    worst = np.convolve(fixed, window, "valid") / np.convolve(mine, window, "valid")
    return float(fixed.sum() / mine.sum()), float(fixed[:EARLY].sum() / mine[:EARLY].sum()), float(worst.min())


def _binned(before: Steps, after: Steps) -> Float64:
    """Seconds of each bin of tokens around the change."""
    tokens = np.cumsum([0, *before.tokens, *after.tokens]) - sum(before.tokens)
    seconds = np.cumsum([0.0, *before.seconds, *after.seconds])
    edges = np.arange(BINS[0], BINS[1] + 1) * BIN
    return np.diff(np.interp(edges, tokens, seconds))


def measure(orders: int) -> dict[str, Any]:
    """Everything."""
    study = Study(orders)
    found: dict[str, Any] = {"test_prompts": len(study.test.prompt_ids), "orders": orders, "bin_tokens": BIN}
    for name, table in truths().items():
        found.setdefault("constant", {})[name] = study.constant(table)
        logger.info("%s: %s", name, found["constant"][name])
    for name, table, compression in (
        ("cpu-2core", CostTable.load("cpu-2core"), "int8"),
        ("cpu-2core", CostTable.load("cpu-2core"), "nf4"),
        ("draft ratio 0.08, flat verification", FLAT, "fp16"),
        ("verification 1 + 0.25 (width - 1)", LINEAR, "fp16"),
    ):
        found.setdefault("distorted", {})[f"{name}, {compression}"] = rows = study.distorted(table, compression)
        logger.info("%s %s: %s", name, compression, rows)
    for name, (first, second, compression) in CHANGES.items():
        found.setdefault("changes", {})[name] = speeds = study.change(first, second, compression)
        logger.info("%s: %s", name, speeds)
    return found


def _read() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return result


def render_constant() -> str:
    """The table of constant times in Markdown."""
    truth = _read()["constant"]
    arms = ["right times", "self-timed", "whole steps", "noise", "nothing trained"]
    lines = [["true times", "compression", *arms], ["---"] * (2 + len(arms))]
    for name, compressions in truth.items():
        for compression, row in compressions.items():
            cells = [f"{row['arms'][arm][0]:.3f} ({row['arms'][arm][1]:.3f})" for arm in arms]
            lines.append([name, compression, *cells])
    return "\n".join(map(line, lines))


def render_distorted() -> str:
    """The table of distorted times in Markdown."""
    found = _read()["distorted"]
    lines = [["what the controller is shown", *found], ["---"] * (1 + len(found))]
    for mode in next(iter(found.values())):
        lines.append([mode, *(f"{rows[mode][0]:.3f} / {rows[mode][1]:.3f}" for rows in found.values())])
    return "\n".join(map(line, lines))


def render_changes() -> str:
    """The table of changes in Markdown."""
    lines = [["change", "arm", "30 steps before", "first 30", "second 30", "third 30", "later"], ["---"] * 7]
    for name, arms in _read()["changes"].items():
        for arm in ("self-timed", "told the first"):
            speeds = arms[arm]
            at = -BINS[0]
            cells = [*speeds[at - 1 : at + 3], float(np.mean(speeds[at + 3 :]))]
            lines.append([name, arm, *(f"{value:.3f}" for value in cells)])
    return "\n".join(map(line, lines))


def draw(path: Path) -> None:
    """Draws the speeds around each change."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    changes = _read()["changes"]
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True, layout="constrained")
    steps = (np.arange(*BINS) + 0.5) * 30
    for axis, (name, arms) in zip(axes.flat, changes.items(), strict=True):
        for arm, style in (("told the first", "--"), ("self-timed", "-")):
            axis.plot(steps, arms[arm], style, marker=".", label=arm)
        axis.axhline(1.0, color="0.6", linewidth=0.8)
        axis.axvline(0.0, color="0.6", linewidth=0.8)
        axis.set_title(name, fontsize=10)
        axis.set_ylim(0.0, 1.1)
    figure.supxlabel("decode steps since the times changed (about)")
    figure.supylabel("tokens a second, over the arm that is told both times")
    axes.flat[0].legend(loc="lower left")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main() -> int:
    """Measures, writes and draws."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/self-timed.json"))
    options = parser.parse_args()
    write_atomically(options.out, canonical_json(measure(options.orders)))
    if options.out.resolve() == RESULT:
        draw(PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
