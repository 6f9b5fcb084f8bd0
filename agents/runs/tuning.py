# SPDX-License-Identifier: Apache-2.0
"""Tunes rules as the best fixed gamma is tuned: total tokens over total seconds on train prompts, by compression."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agents.per_compression import PerCompression, StoppingPerCompression
from agents.registry import TrainingData, decides_token_by_token, default_settings, make_controller, within_depth
from speckv.cost import require_single_request
from speckv.errors import ConfigError, nearest
from speckv.evaluation.replays import compile_pair
from speckv.replay import replay_controller
from speckv.types import StoppingController

Options = Mapping[str, Sequence[object]]

_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
GRIDS: Mapping[str, Options] = {
    "adaedl": {"threshold": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), "gamma_max": (4, 8, 16)},
    "gammatune": {"start": (1, 2, 4, 8), "eta": (0.1, 0.3), "delta": (1, 2), "threshold": (0.0, 0.4, 0.6, 0.8)},
    "kangaroo": {"eta": _SHARES, "gamma_max": (2, 3, 4, 6, 8, 12, 16)},
    "llama_cpp": {"p_min": _SHARES, "n_max": (2, 3, 4, 6, 8, 12, 16)},
    "sglang_ema": {"candidates": ((1, 3, 5, 7), (0, 1, 2, 3), (1, 2, 3, 4), (2, 5, 8, 12)), "start": (0, 1, 2)},
    "svip": {"threshold": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), "gamma_max": (2, 3, 4, 6, 8, 12, 16)},
    "transformers_confidence": {"threshold": _SHARES, "gamma_max": (3, 5, 8, 16), "adaptive": (False,)},
    "transformers_heuristic": {"start": (1, 2, 3, 5, 8), "up": (1, 2, 3), "down": (1, 2)},
}
"""Agent -> values of its settings that are tried, every combination."""


def tune(name: str, data: TrainingData) -> PerCompression:
    """Finds the best settings of an agent's grid for each compression and puts them together.

    Raises:
        ConfigError: if there is no grid for it, or it does not fit the data.
    """
    if name not in GRIDS:
        known = sorted(GRIDS)
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
    """Settings of the grid that fit the recordings' depth and the cost table's batch."""
    depth, batch = data.train.metadata.gamma_max, data.cost.batch
    grid = [default_settings(name, **options) for options in _combinations(GRIDS[name])]
    kept = [s for s in grid if batch == 1 or not decides_token_by_token(name, s)]
    if not kept:
        require_single_request(f"agent {name}", batch)
    return [within_depth(name, settings, depth) for settings in kept]


def _combinations(options: Options) -> Iterator[dict[str, object]]:
    for values in itertools.product(*options.values()):
        yield dict(zip(options, values, strict=True))
