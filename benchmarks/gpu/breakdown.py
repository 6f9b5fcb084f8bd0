# SPDX-License-Identifier: Apache-2.0
"""Stage `breakdown`: where a step's time goes, in milliseconds, by gamma."""

from functools import partial

from benchmarks.gpu.models import is_random, main_pair
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.work import Work
from benchmarks.step_breakdown import PROMPT, break_down_all
from speckv.models import ModelPair
from speckv.models.dtypes import dtype_name


def run(settings: Settings, work: Work) -> None:
    """Takes steps apart, gamma by gamma."""
    pair = main_pair(settings)
    gammas, budget = ((0, 2), 8) if settings.tiny else ((0, 4, 2, 8, 1), 64)
    work.piece("pair", lambda: describe(pair))
    for gamma in gammas:
        work.piece(f"gamma {gamma}", partial(milliseconds, pair, gamma, budget))


def describe(pair: ModelPair) -> dict[str, str | bool]:
    """What is taken apart."""
    return {"name": pair.config.name, "dtype": dtype_name(pair.target.dtype), "random_weights": is_random(pair)}


def milliseconds(pair: ModelPair, gamma: int, max_new_tokens: int) -> dict[str, float]:
    """Milliseconds a step by part, at one gamma."""
    return break_down_all(pair, pair.encode(PROMPT), [gamma], max_new_tokens)[str(gamma)]
