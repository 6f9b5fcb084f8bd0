# SPDX-License-Identifier: Apache-2.0
"""Tunes rules as the best fixed gamma is tuned: total tokens over total seconds on train prompts, by compression."""

import itertools
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from speckv.agents.per_compression import PerCompression, StoppingPerCompression
from speckv.agents.registry import (
    AGENTS,
    TrainingData,
    decides_token_by_token,
    default_settings,
    make_controller,
    within_depth,
)
from speckv.cost import require_single_request
from speckv.errors import ConfigError, nearest
from speckv.evaluation.replays import compile_pair
from speckv.replay import replay_controller
from speckv.types import StoppingController

Options = Mapping[str, Sequence[object]]


@cache
def grids() -> Mapping[str, Options]:
    """Agent -> values of its settings that are tried, every combination: the `GRID` of a rule's module."""
    modules = {n: sys.modules[a.controller_class.__module__] for n, a in AGENTS.items() if not a.in_environment}
    return {name: module.GRID for name, module in modules.items() if hasattr(module, "GRID")}


def tune(name: str, data: TrainingData) -> PerCompression:
    """Finds the best settings of an agent's grid for each compression; a ConfigError if there is no grid that fits."""
    if name not in grids():
        known = sorted(grids())
        raise ConfigError(f"Expected an agent with a grid, of {known}, got {name!r}.{nearest(name, known)}")
    candidates = _candidates(name, data)
    best: dict[str, tuple[float, Any]] = {}
    compiled, cost = compile_pair(data.train, data.cost)
    for settings in candidates:
        record = replay_controller(make_controller(name, settings, data), compiled, cost)
        for compression in compiled.compression_names:
            rows = [row for row, c in enumerate(record.compressions) if c == compression]
            rate = float(record.num_tokens[rows].sum() / record.seconds[rows].sum())
            if compression not in best or rate > best[compression][0]:
                best[compression] = rate, settings
    # Each compression gets a controller of its own: one that remembers must not learn a step twice.
    chosen = {compression: make_controller(name, settings, data) for compression, (_, settings) in best.items()}
    title = f"{name.replace('_', '-')}, tuned"
    if any(isinstance(controller, StoppingController) for controller in chosen.values()):
        return StoppingPerCompression(chosen, name=title)
    return PerCompression(chosen, name=title)


def _candidates(name: str, data: TrainingData) -> list[Any]:
    depth, batch = data.train.metadata.gamma_max, data.cost.batch
    options = grids()[name]
    grid = [default_settings(name, **dict(zip(options, v, strict=True))) for v in itertools.product(*options.values())]
    kept = [s for s in grid if batch == 1 or not decides_token_by_token(name, s)]
    if not kept:
        require_single_request(f"agent {name}", batch)
    return [within_depth(name, settings, depth) for settings in kept]
