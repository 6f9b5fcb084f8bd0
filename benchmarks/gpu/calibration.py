# SPDX-License-Identifier: Apache-2.0
"""Stage `calibration`: cost tables of the Qwen pair and of Llama shapes, as JSON files beside the report."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import device_name
from benchmarks.gpu.models import RANDOM, load, random_pair, real_pair
from benchmarks.gpu.settings import Settings, slug
from benchmarks.gpu.work import Work
from speckv.commands.calibrate import shipped_check, typical_policy
from speckv.cost import CostTable
from speckv.models import PairConfig
from speckv.profiling.calibrate import CalibrationPlan, calibrate
from speckv.profiling.pass_times import TimingPlan
from speckv.runtime.policy import PolicyController

RANDOM_NOTE = (
    "Random weights in the published shapes, made on the device: what a pass takes does not depend on the values of "
    "the weights, but for the outlier columns of INT8, which a real model has more of. Texts and acceptance rates of "
    "such models mean nothing."
)
TINY = TimingPlan(reference_context=16, far_context=32, widths=(1, 3), repeats=1, warmups=1)
LIVE = ("qwen2.5-coder", "llama-8b-own-layers")
"""Pairs that decode live, with weights and without."""


def pairs(settings: Settings) -> dict[str, tuple[PairConfig, tuple[str, ...]]]:
    """Key -> pair and compressions; those that decode live come first, in case time runs out."""
    compressions = ("fp16", "int8", "nf4")
    found: dict[str, tuple[PairConfig, tuple[str, ...]]] = {}
    if (real := real_pair(settings)) is not None:
        found[LIVE[0]] = (real, compressions)
    else:
        found[LIVE[1]] = (random_pair(settings), ("fp16",))
    for draft in ("1b", "3b"):
        found[f"llama-8b-{draft}"] = (random_pair(settings, f"llama-3.2-{draft}"), compressions)
    if settings.tiny:  # both are the same tiny pair
        del found["llama-8b-3b"]
    return found


def run(settings: Settings, work: Work) -> None:
    """Calibrates every pair."""
    for key, (pair, compressions) in pairs(settings).items():
        work.piece(key, partial(measure, settings, key, pair, compressions))


def measure(settings: Settings, key: str, pair: PairConfig, compressions: tuple[str, ...]) -> dict[str, Any]:
    """Measures one pair and writes its table; returns the table's file name and what a reader asks first."""
    plan = CalibrationPlan(
        name=table_path(settings, key).stem,
        pair=replace(pair, compression="fp16"),
        compressions=compressions,
        timing=TINY if settings.tiny else TimingPlan(),
        batches=(1, 2) if settings.tiny else (1, 4, 16),
        check=None if pair.target.startswith(RANDOM) else shipped_check(),
        notes=RANDOM_NOTE if pair.target.startswith(RANDOM) else "",
    )
    table = calibrate(plan, PolicyController(typical_policy()), load=load)
    path = table_path(settings, key)
    table.save(path)
    return {
        "table": path.name,
        "pair": pair.name,
        "notes": plan.notes,
        "controller_s": table.controller_s,
        "checks": dict(table.checks),
        "compressions": {name: _first_look(table, name) for name in compressions},
    }


def _first_look(table: CostTable, compression: str) -> dict[str, Any]:
    entry = table.entry(compression)
    picked = [i for i, width in enumerate(entry.verify_widths) if width in (1, 2, 5, 9, 17)]
    return {
        "dtype": entry.dtype,
        "draft_pass_ms": 1e3 * entry.draft_s[0],
        "verify_ms_by_width": {str(entry.verify_widths[i]): 1e3 * entry.verify_s[i] for i in picked},
        "cost_ratio": table.cost_ratio(compression),
        "worst_spread": max(entry.spread),
    }


def table_path(settings: Settings, key: str) -> Path:
    """Where the cost table of a pair goes: beside the report, named after device and pair."""
    return Path(settings.tables) / f"cost-{slug(device_name(settings))}-{key}.json"


def live_table(settings: Settings) -> CostTable | None:
    """The table of the pair that decodes live, if this device has been calibrated."""
    path = table_path(settings, LIVE[0] if real_pair(settings) is not None else LIVE[1])
    return CostTable.load(path) if path.is_file() else None
