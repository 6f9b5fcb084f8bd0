# SPDX-License-Identifier: Apache-2.0
"""Stage `calibration`: cost tables of the Qwen pair and of Llama shapes, as JSON files beside the report."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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


class Job(NamedTuple):
    """What is measured of a pair: its target's compressions, the most telling ones first, and batches."""

    pair: PairConfig
    compressions: tuple[str, ...]
    batches: tuple[int, ...]


def jobs(settings: Settings) -> dict[str, Job]:
    """Key -> what is measured; those that decode live come first, in case time runs out.

    The pair with the draft of 3B is measured unquantised alone: compressed, its target is that of the pair with 1B.
    """
    kinds = ("fp16", "nf4") if settings.short else ("fp16", "nf4", "int8")  # INT8 passes are the slowest
    wide = (1, 2) if settings.tiny else (1, 16) if settings.short else (1, 4, 16)
    usual = (1,) if settings.short else wide
    found: dict[str, Job] = {}
    if (real := real_pair(settings)) is not None:
        found[LIVE[0]] = Job(real, kinds, usual)
    else:
        found[LIVE[1]] = Job(random_pair(settings), ("fp16", "nf4"), usual)
    found["llama-8b-1b"] = Job(random_pair(settings, "llama-3.2-1b"), kinds, wide)
    if not settings.tiny:  # it would be the same tiny pair
        found["llama-8b-3b"] = Job(random_pair(settings, "llama-3.2-3b"), ("fp16",), usual)
    return found


def run(settings: Settings, work: Work) -> None:
    """Calibrates every pair."""
    for key, job in jobs(settings).items():
        work.piece(key, partial(measure, settings, key, job))


def measure(settings: Settings, key: str, job: Job) -> dict[str, Any]:
    """Measures one pair and writes its table, which grows on disk with each compression.

    Returns:
        The table's file name, and what a reader asks first.
    """
    path = table_path(settings, key)
    is_random = job.pair.target.startswith(RANDOM)
    plan = CalibrationPlan(
        name=path.stem,
        pair=replace(job.pair, compression="fp16"),
        compressions=job.compressions,
        timing=TINY if settings.tiny else TimingPlan(),
        batches=job.batches,
        check=None if is_random else shipped_check(),
        notes=RANDOM_NOTE if is_random else "",
    )
    table = calibrate(plan, PolicyController(typical_policy()), load=load, keep=lambda so_far: so_far.save(path))
    return {
        "table": path.name,
        "pair": job.pair.name,
        "notes": plan.notes,
        "controller_s": table.controller_s,
        "checks": dict(table.checks),
        "compressions": {name: _first_look(table, name) for name in job.compressions},
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
