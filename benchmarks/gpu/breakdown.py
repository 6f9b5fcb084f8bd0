# SPDX-License-Identifier: Apache-2.0
"""Stage `breakdown`: where a step's time goes, in milliseconds, by gamma."""

from typing import Any

from benchmarks.gpu.models import is_random, main_pair
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.work import Work
from benchmarks.step_breakdown import PROMPT, break_down_all
from speckv.models.dtypes import dtype_name


def run(settings: Settings, work: Work) -> None:
    """Takes steps apart."""
    work.piece("steps", lambda: measure(settings))


def measure(settings: Settings) -> dict[str, Any]:
    """Milliseconds of each part of a step."""
    pair = main_pair(settings)
    gammas, budget = ((0, 2), 8) if settings.tiny else ((0, 1, 2, 4, 8), 64)
    return {
        "pair": pair.config.name,
        "dtype": dtype_name(pair.target.dtype),
        "random_weights": is_random(pair),
        "ms_a_step": break_down_all(pair, pair.encode(PROMPT), gammas, budget),
    }
