# SPDX-License-Identifier: Apache-2.0
"""Stage `throughput`: live, whole calls, arms interleaved: plain, best fixed gamma, controllers, transformers' own.

The best fixed gamma is chosen on other prompts than those that are reported. Controllers decide by the table that the
stage `calibration` wrote for this device, if it is there. A random pair accepts what its damped layers make it accept:
its ratios between arms show the loop's cost, and what a controller makes of such a draft; no more.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from agents.bandits.calibrated import CalibratedSettings, CalibratedStopping
from benchmarks.against_transformers import THEIRS, make_engines, ours, theirs, theirs_assisted
from benchmarks.arms import Decode, Runs, run_arms
from benchmarks.gpu.calibration import live_table
from benchmarks.gpu.models import graphs, is_random, main_pair
from benchmarks.gpu.prompts import MEASURED, TUNING
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.work import Work
from speckv.commands.decode import find_controller
from speckv.cost import CostTable
from speckv.cost.times import StepTimes
from speckv.decoding import RequestContext
from speckv.models import ModelPair
from speckv.models.dtypes import dtype_name
from speckv.runtime.constant import ConstantGamma
from speckv.types import Controller

GAMMAS = (1, 2, 3, 4, 6, 8)
"""Fixed gammas that are tried."""
SHIPPED_CLOCK = "rtx3090-paper"
"""The shipped policy that was trained on a GPU's clock, and the table where this device has none."""
PLAIN = "ours, plain"


def run(settings: Settings, work: Work) -> None:
    """Sweeps the fixed gammas, then runs all arms."""
    compressions = ("fp16",) if settings.short else ("fp16", "nf4")
    for done, compression in enumerate(compressions):
        left = len(compressions) - done
        work.piece(compression, partial(measure, settings, compression, work.share(3 * left), work.share(left)))


def measure(
    settings: Settings, compression: str, sweep_in_time: Callable[[], bool], in_time: Callable[[], bool]
) -> dict[str, Any]:
    """Tokens a second of every arm on the pair at hand.

    Args:
        settings: Device and size.
        compression: Of the target.
        sweep_in_time: Whether to tune on another prompt.
        in_time: Whether to measure on another prompt.
    """
    pair = main_pair(settings, compression=compression)
    table = decision_table(settings, compression)
    budget = 12 if settings.tiny else 64
    context = RequestContext(compression=compression, cost_ratio=table.cost_ratio(compression))
    tuning, measured = (_encoded(pair, prompts, 2 if settings.tiny else None) for prompts in (TUNING, MEASURED))
    engines = make_engines(pair, budget + max(map(len, [*tuning.values(), *measured.values()])))
    mine = partial(ours, engines.drafting, context=context, max_new_tokens=budget)
    wait = partial(synchronise, pair.target.device)
    sweep = {f"ours, {gamma}": mine(ConstantGamma(gamma)) for gamma in (GAMMAS[:2] if settings.tiny else GAMMAS)}
    tuned = run_arms(sweep, tuning, synchronise=wait, go_on=sweep_in_time)
    best = max(sweep, key=tuned.tokens_per_s)
    gamma = int(best.rpartition(" ")[2])
    arms = make_arms(pair, ours(engines.alone, ConstantGamma(0), context, budget), mine, gamma, budget, table)
    runs = run_arms(arms, measured, synchronise=wait, go_on=in_time)
    return {
        "pair": pair.config.name,
        "dtype": dtype_name(pair.target.dtype),
        "random_weights": is_random(pair),
        "max_new_tokens": budget,
        "cost_table": table.name,
        "prompts": len(runs.seconds[PLAIN]),
        "prompts_planned": len(measured),
        "sweep_tokens_per_s": {name: tuned.tokens_per_s(name) for name in sweep},
        "best_fixed_gamma": gamma,
        "graphs": graphs(pair),
        "arms": summarise(runs, list(arms)),
    }


def decision_table(settings: Settings, compression: str) -> CostTable:
    """What controllers decide by: this device's times where they cover the compression, else a shipped table."""
    table = live_table(settings)
    return table if table is not None and compression in table.compressions else CostTable.load(SHIPPED_CLOCK)


def make_arms(
    pair: ModelPair, plain: Decode, mine: "partial[Decode]", gamma: int, budget: int, table: CostTable
) -> dict[str, Decode]:
    """Name -> how to decode."""
    arms: dict[str, Decode] = {THEIRS: theirs(pair, budget), PLAIN: plain, f"ours, {gamma}": mine(ConstantGamma(gamma))}
    for controller in controllers(table):
        arms[f"ours, {controller.name}"] = mine(controller)
    return arms | theirs_assisted(pair, gamma, budget)


def controllers(table: CostTable) -> list[Controller]:
    """The shipped policy, and the online learner that needs no training, on this device's clock."""
    learner = CalibratedStopping(CalibratedSettings(), StepTimes.of(table), 0)
    return [find_controller("shipped", SHIPPED_CLOCK), learner]


def summarise(runs: Runs, names: list[str]) -> dict[str, dict[str, Any]]:
    """Rates of whole calls, their ratio to our plain decoding, and how many texts differ from it."""
    plain = runs.tokens_per_s(PLAIN)
    return {
        name: {
            "tokens_per_s": runs.tokens_per_s(name),
            "ratio_to_plain": runs.tokens_per_s(name) / plain,
            "prompts_with_another_text": runs.other_texts(name, PLAIN),
            "seconds": runs.seconds[name],
        }
        for name in names
    }


def synchronise(device: torch.device) -> None:
    """Waits for a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _encoded(pair: ModelPair, prompts: dict[str, str], few: int | None) -> dict[str, list[int]]:
    return {name: pair.encode(text) for name, text in list(prompts.items())[:few]}
