# SPDX-License-Identifier: Apache-2.0
"""Stage `breakdown`: where a step's time goes, in milliseconds, by gamma."""

from functools import partial
from typing import Any

from benchmarks.gpu.models import graphs, is_random, main_pair
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.work import Work
from benchmarks.step_breakdown import PROMPT, break_down_all
from speckv.models import ModelPair
from speckv.models.dtypes import dtype_name

GAMMAS = (0, 4, 2, 8, 1)
"""The most telling ones first, in case time runs out."""


def run(settings: Settings, work: Work) -> None:
    """Takes steps apart, gamma by gamma."""
    pair = main_pair(settings)
    work.piece("pair", lambda: describe(pair))
    for gamma in gammas(settings):
        work.piece(f"gamma {gamma}", partial(milliseconds, pair, gamma, 8 if settings.tiny else 64))


def gammas(settings: Settings) -> tuple[int, ...]:
    """Which gammas are taken apart."""
    if settings.tiny:
        return (0, 2)
    return GAMMAS[:3] if settings.short else GAMMAS


def describe(pair: ModelPair) -> dict[str, str | bool]:
    """What is taken apart."""
    return {"name": pair.config.name, "dtype": dtype_name(pair.target.dtype), "random_weights": is_random(pair)}


def milliseconds(pair: ModelPair, gamma: int, max_new_tokens: int) -> dict[str, Any]:
    """Milliseconds a step by part, at one gamma, and how the passes ran."""
    parts = break_down_all(pair, pair.encode(PROMPT), [gamma], max_new_tokens)[str(gamma)]
    return {**parts, "graphs": graphs(pair)}
