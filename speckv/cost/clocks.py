# SPDX-License-Identifier: Apache-2.0
"""Made-up cost tables of many machines, for learners that must decide well on any of them."""

import math
from collections.abc import Sequence

import numpy as np

from speckv.cost.entry import CostEntry
from speckv.cost.table import CostTable
from speckv.types import GAMMA_MAX

PLAIN_S = 0.02
RATIO = 0.03, 0.95
"""Least and greatest time of a draft pass, in units of a target pass; drawn evenly in its logarithm."""
FLAT, JUMPS = 0.3, 0.4
"""Chance that verification does not grow with its width, and that two rows take longer than one by a jump."""
JUMP, SLOPE = (0.05, 0.6), (0.003, 0.3)
"""Least and greatest jump, and growth with each further row, in units of a target pass."""


def made_up_clocks(compressions: Sequence[str], number: int, seed: int = 0) -> list[CostTable]:
    """Cost tables without context slopes; each compression of each is drawn on its own."""
    rng = np.random.default_rng(seed)
    return [
        CostTable(
            name=f"made-up-{clock}",
            kind="fitted",
            machine={},
            entries={name: _entry(name, rng) for name in compressions},
        )
        for clock in range(number)
    ]


def _entry(compression: str, rng: np.random.Generator) -> CostEntry:
    draft_s = PLAIN_S * _log_even(rng, RATIO)
    jump = rng.uniform(*JUMP) if rng.random() < JUMPS else 0.0
    slope = 0.0 if rng.random() < FLAT else _log_even(rng, SLOPE)
    widths = list(range(1, GAMMA_MAX + 2))
    return CostEntry(
        compression=compression,
        dtype="none",
        reference_context=256,
        draft_widths=[1, GAMMA_MAX + 1],
        draft_s=[draft_s, draft_s],
        draft_context_slope_s=0.0,
        verify_widths=widths,
        verify_s=[PLAIN_S * (1.0 + (jump if width > 1 else 0.0) + slope * (width - 1)) for width in widths],
        verify_context_slope_s=0.0,
    )


def _log_even(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return math.exp(rng.uniform(math.log(low), math.log(high)))
