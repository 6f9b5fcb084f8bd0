# SPDX-License-Identifier: Apache-2.0
"""`python -m speckv calibrate name=my-machine out=my-machine.json`."""

import itertools
import logging
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from speckv.commands.models import pair_config
from speckv.cost import CostTable
from speckv.decoding import PromptLookup
from speckv.errors import ConfigError
from speckv.observation import SCHEMA
from speckv.profiling.calibrate import CalibrationPlan, calibrate, with_lookup_times
from speckv.runtime.policy import MlpPolicy, PolicyController
from speckv.traces import GAMMA_MAX

TIMED_VOCABULARY = 50_000
"""Tokens in the text that a lookup is timed on."""
logger = logging.getLogger(__name__)


def run(config: DictConfig) -> None:
    """Measures as configured and writes the table."""
    if config.threads:
        torch.set_num_threads(config.threads)
    plan = CalibrationPlan(
        name=config.name,
        pair=pair_config(config.model),
        compressions=tuple(config.compressions),
        reference_context=config.reference_context,
        far_context=config.far_context,
        repeats=config.repeats,
        notes=config.notes,
    )
    if config["from"] is None:
        table = calibrate(plan, PolicyController(typical_policy()), on_progress=logger.info)
    else:
        table = _with_lookup(CostTable.load(config["from"]), plan)
    out = Path(config.out or f"{config.name}.json")
    table.save(out)
    for name, entry in table.entries.items():
        times = ", ".join(
            f"{w}: {1e3 * s:.0f}"
            for w, s in zip(entry.verify_widths, entry.verify_s, strict=True)
            if w in (1, 2, 5, 9, 17)
        )
        logger.info(
            "%s (%s): verify ms by width %s; cost ratio %.2g; worst spread %.0f %%",
            name,
            entry.dtype,
            times,
            table.cost_ratio(name),
            100 * max(entry.spread, default=0.0),
        )
    logger.info("decision %.0f us; wrote %s", 1e6 * table.controller_s, out)


def _with_lookup(table: CostTable, plan: CalibrationPlan) -> CostTable:
    if plan.pair.draft != "lookup":
        raise ConfigError(
            f"Expected model.draft=lookup to take the target's times from {table.name}, got {plan.pair.draft!r}: a "
            "model has to be measured. Leave `from` out."
        )
    lookup = PromptLookup(TIMED_VOCABULARY, plan.pair.lookup_longest, plan.pair.lookup_shortest)
    return with_lookup_times(table, lookup, plan)


def typical_policy(hidden: int = 64) -> MlpPolicy:
    """A policy of the trained ones' size; how long a decision takes does not depend on the weights."""
    rng = np.random.default_rng(0)
    sizes = (SCHEMA.size, hidden, hidden, GAMMA_MAX + 1)
    return MlpPolicy(
        name="typical",
        schema=SCHEMA,
        gammas=tuple(range(GAMMA_MAX + 1)),
        mean=np.zeros(SCHEMA.size, np.float32),
        std=np.ones(SCHEMA.size, np.float32),
        weights=tuple(rng.normal(size=(b, a)).astype(np.float32) for a, b in itertools.pairwise(sizes)),
        biases=tuple(np.zeros(size, np.float32) for size in sizes[1:]),
        provenance={},
    )
