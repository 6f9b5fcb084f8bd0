# SPDX-License-Identifier: Apache-2.0
"""Clocks for replay: made-up cost tables, and what a controller may be shown of a step's true times."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from speckv.agents.self_timed import SelfTimed
from speckv.cost import CompiledCost, CostEntry, CostTable
from speckv.cost.times import StepTimes
from speckv.replay import CompiledTraces, replay_stream
from speckv.types import GAMMA_MAX, Controller, StepOutcome

COMPRESSIONS = ("fp16", "int8", "nf4")
Shown = Callable[[StepOutcome], StepOutcome]
MS = 1e-3


def made_up(name: str, draft_s: float, verify_s: Callable[[int], float]) -> CostTable:
    """A cost table from formulae of the width."""
    widths = list(range(1, GAMMA_MAX + 2))
    entries = {
        compression: CostEntry(
            compression=compression,
            dtype="none",
            reference_context=256,
            draft_widths=[1, GAMMA_MAX + 1],
            draft_s=[draft_s, draft_s],
            draft_context_slope_s=0.0,
            verify_widths=widths,
            verify_s=[verify_s(width) for width in widths],
            verify_context_slope_s=0.0,
        )
        for compression in COMPRESSIONS
    }
    return CostTable(name=name, kind="fitted", machine={}, entries=entries)


FLAT = made_up("flat", 1.6 * MS, lambda _: 20 * MS)
LINEAR = made_up("linear", 6 * MS, lambda width: 20 * MS * (1 + 0.25 * (width - 1)))
NEVER_PAYS = made_up("never", 18 * MS, lambda width: 20 * MS * (1 + 0.1 * (width - 1)))


def as_it_is(outcome: StepOutcome) -> StepOutcome:
    """The true times."""
    return outcome


def scaled(outcome: StepOutcome, factor: float, *, more_verify_s: float = 0.0) -> StepOutcome:
    """All times multiplied, and time added to verification."""
    return replace(
        outcome,
        seconds=factor * outcome.seconds + more_verify_s,
        draft_s=factor * outcome.draft_s,
        first_draft_s=factor * outcome.first_draft_s,
        verify_s=factor * outcome.verify_s + more_verify_s,
    )


def whole_steps(outcome: StepOutcome) -> StepOutcome:
    """Hides the times of passes."""
    return replace(outcome, draft_s=0.0, first_draft_s=0.0, verify_s=0.0)


def noisy(seed: int, deviation: float = 0.15, rate: float = 0.01, factor: float = 10.0) -> Shown:
    """Multiplies a step's times by a random factor; some steps are `factor` times as long, in verification."""
    rng = np.random.default_rng(1000 + seed)

    def shown(outcome: StepOutcome) -> StepOutcome:
        scale = math.exp(deviation * rng.standard_normal())
        pause = scale * (factor - 1) * outcome.seconds if rng.random() < rate else 0.0
        return scaled(outcome, scale, more_verify_s=pause)

    return shown


def consumer(share: float) -> Shown:
    """Work of the caller inside the step, for each emitted token; `share` of a plain step's time."""
    plain: list[float] = []

    def shown(outcome: StepOutcome) -> StepOutcome:
        if not outcome.num_drafted:
            plain.append(outcome.seconds)
        work = share * (plain[-1] if plain else outcome.verify_s or outcome.seconds)
        return scaled(outcome, 1.0, more_verify_s=work * outcome.num_emitted)

    return shown


def idle(seed: int, rate: float = 0.03, factor: float = 50.0) -> Shown:
    """Some steps pause for `factor` times their length, in verification."""
    return noisy(seed, 0.0, rate, factor)


def coarse(tick_s: float, seed: int = 0) -> Shown:
    """A clock of whole ticks, read at the ends of passes."""
    rng = np.random.default_rng(seed)

    def shown(outcome: StepOutcome) -> StepOutcome:
        began = rng.uniform(0.0, tick_s)
        ends = began + np.array([outcome.first_draft_s, outcome.draft_s, outcome.draft_s + outcome.verify_s])
        first, drafted, ended = np.floor(ends / tick_s) * tick_s
        seconds = max(math.floor((began + outcome.seconds) / tick_s) * tick_s, tick_s)
        return replace(outcome, seconds=seconds, draft_s=drafted, first_draft_s=first, verify_s=ended - drafted)

    return shown


@dataclass(slots=True)
class Load:
    """Another program that makes every step `factor` times as long, in turns of `steps`; also what is charged."""

    factor: float = 2.0
    steps: int = 20
    done: int = 0
    seconds: float = 0.0

    def __call__(self, outcome: StepOutcome) -> StepOutcome:
        """What the controller is shown."""
        factor = self.factor if self.done // self.steps % 2 else 1.0
        self.done += 1
        self.seconds += factor * outcome.seconds
        return scaled(outcome, factor)


@dataclass(slots=True)
class Steps:
    """Keeps the tokens and seconds of every step."""

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __call__(self, outcome: StepOutcome) -> StepOutcome:
        """What the controller is shown: the truth."""
        self.tokens.append(outcome.num_emitted)
        self.seconds.append(outcome.seconds)
        return outcome


def told(controller: SelfTimed, table: CostTable, compression: str) -> Controller:
    """The same controller with the right times from the start."""
    return controller.with_times(StepTimes.of(table, [compression]))


def stream_s(
    controller: Controller, pair: tuple[CompiledTraces, CompiledCost], order: list[int], shown: Shown = as_it_is
) -> float:
    """True seconds of a stream of requests."""
    return float(replay_stream(controller, *pair, order=order, shown=shown).seconds.sum())
