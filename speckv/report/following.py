# SPDX-License-Identifier: Apache-2.0
"""Follows one controller through recorded prompts, and asks all others at every step what they would do in its place.

A replay is exact on the trajectory of the controller that drives it: each has its own steps. What another would choose
*here* is asked in the driver's own state: the same position, the same lag of the draft, the same past.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speckv.cost import CompiledCost
from speckv.evaluation.replays import STREAM_SEED
from speckv.replay import CompiledTraces, OptimalPlan, ReplayBatch, decide, outcome_of, plan_optimum, replay_stream
from speckv.replay.optimum import sequences_at_once
from speckv.replay.runs import Choice, run_to_end
from speckv.types import BatchMemory, BoolArray, Controller, DecodedSteps, IntArray, OnlineLearner

Learned = dict[int, Controller]
"""Sequence -> a learner as it stood when that request began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What one player would do in a state.

    Attributes:
        gamma: Asked for, or where it stops drafting.
        num_drafted: Tokens that would be drafted.
        num_accepted: Of them, accepted.
        seconds: Time that the step would take, its decisions included.
    """

    gamma: int
    num_drafted: int
    num_accepted: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the driver.

    Attributes:
        position: Tokens emitted before it.
        num_emitted: Tokens that it emitted.
        chosen: What each player would do here, in the players' order; the driver did what stands in its place.
    """

    position: int
    num_emitted: int
    chosen: tuple[Chosen, ...]


class Player:
    """Whoever decides in a replay: a controller, or the clairvoyant where none is given.

    Args:
        name: Shown on the page.
        controller: Any.
        learned: Of a controller that learns from request to request: as it stood when each began.
    """

    def __init__(self, name: str, controller: Controller | None = None, learned: Learned | None = None) -> None:
        self.name, self.learned = name, learned
        self._controller = controller
        self._plan: OptimalPlan | None = None
        self._memory: BatchMemory | None = None

    def charge(self, cost: CompiledCost) -> float:
        """Seconds of one decision."""
        return cost.controller_s if self._controller is not None and self._controller.charges_decision else 0.0

    def begin(self, batch: ReplayBatch) -> None:
        """Gets ready for the requests in a batch; a learner for the only one."""
        if self._controller is None:
            self._plan = plan_optimum(batch)
            return
        if self.learned is not None:
            self._controller = copy.deepcopy(self.learned[int(batch.sequence[0])])
        self._controller.reset()
        self._memory = self._controller if isinstance(self._controller, BatchMemory) else None
        if self._memory is not None:
            self._memory.start(batch.num_slots)

    def choose(self, batch: ReplayBatch) -> Choice:
        """Decides for every slot."""
        if self._controller is None:
            assert self._plan is not None
            return self._plan.choice(batch)
        return decide(batch, self._controller)

    def remember(self, step: DecodedSteps, where: BoolArray, batch: ReplayBatch, *, drives: bool) -> None:
        """Takes in a step; a learner learns from its own steps alone."""
        if self.learned is not None:
            if drives and self._controller is not None:
                self._controller.learn(outcome_of(step, batch))
        elif self._memory is not None:
            self._memory.remember(step, where)


def players_of(
    controllers: Sequence[Controller], compiled: CompiledTraces, cost: CompiledCost, sequences: Sequence[int]
) -> list[Player]:
    """A player for each controller; learners meet all requests in the order in which an evaluation shows them.

    Args:
        controllers: Any.
        compiled: Recordings that were evaluated on.
        cost: The times.
        sequences: Which of them will be followed.
    """
    players = []
    for controller in controllers:
        learned = None
        if isinstance(controller, OnlineLearner):
            learned = _as_each_began(controller, compiled, cost, sequences)
        players.append(Player(controller.name, copy.deepcopy(controller), learned))
    return players


def _as_each_began(
    controller: Controller, compiled: CompiledTraces, cost: CompiledCost, sequences: Sequence[int]
) -> Learned:
    learner, learned = copy.deepcopy(controller), {}
    order = np.random.default_rng(STREAM_SEED).permutation(len(compiled)).tolist()
    stops = sorted(order.index(sequence) for sequence in sequences)
    for start, stop in zip([0, *stops], stops, strict=False):
        if stop > start:
            replay_stream(learner, compiled, cost, order=order[start:stop])
        learned[order[stop]] = copy.deepcopy(learner)
    return learned


def follow(
    driver: Player, players: Sequence[Player], compiled: CompiledTraces, cost: CompiledCost, sequences: Sequence[int]
) -> list[tuple[Step, ...]]:
    """Replays sequences under the driver.

    Args:
        driver: One of the players.
        players: Who is asked at every step.
        compiled: The recordings.
        cost: The times.
        sequences: Which of them.

    Returns:
        The steps of each sequence.
    """
    # A learner is another one at each request, so requests come one by one where there is any.
    alone = any(player.learned is not None for player in players)
    size = 1 if alone else sequences_at_once(compiled)
    groups = [sequences[start : start + size] for start in range(0, len(sequences), size)]
    return [steps for group in groups for steps in _follow_side_by_side(driver, players, compiled, cost, group)]


def _follow_side_by_side(
    driver: Player, players: Sequence[Player], compiled: CompiledTraces, cost: CompiledCost, sequences: Sequence[int]
) -> Iterator[tuple[Step, ...]]:
    batch = ReplayBatch(compiled, cost, len(sequences), controller_s=driver.charge(cost))
    batch.assign(np.arange(len(sequences)), np.asarray(sequences))
    for player in players:
        player.begin(batch)
    asked: list[_Asked] = []

    def choose(running: ReplayBatch) -> Choice:
        choices = [player.choose(running) for player in players]
        asked.append(_ask(running, players, choices))
        return choices[players.index(driver)]

    def remember(step: DecodedSteps, where: BoolArray) -> None:
        for player in players:
            player.remember(step, where, batch, drives=player is driver)

    log = run_to_end(batch, choose, log=True, remember=remember).log
    assert log is not None
    gammas, drafted, accepted, seconds = (np.concatenate(parts) for parts in zip(*asked, strict=True))
    for slot in range(len(sequences)):
        rows = np.flatnonzero(log.sequence == slot)
        yield tuple(
            Step(
                position=int(log.position[row]),
                num_emitted=int(log.num_emitted[row]),
                chosen=tuple(
                    Chosen(gamma=int(g), num_drafted=int(d), num_accepted=int(a), seconds=float(s))
                    for g, d, a, s in zip(gammas[row], drafted[row], accepted[row], seconds[row], strict=True)
                ),
            )
            for row in rows
        )


_Asked = tuple[IntArray, IntArray, IntArray, NDArray[np.float64]]


def _ask(batch: ReplayBatch, players: Sequence[Player], choices: Sequence[Choice]) -> _Asked:
    """Gammas, drafted and accepted tokens and seconds, each of shape [running slots, players]."""
    rows = np.flatnonzero(batch.running)
    position = batch.history.emitted
    limit, acceptable = batch.draft_limits(np.minimum(position, batch.length))
    columns = []
    for player, choice in zip(players, choices, strict=True):
        drafted = np.minimum(choice.gammas, np.maximum(limit, 0))
        seconds = batch.step_seconds(drafted) + player.charge(batch.cost) * choice.num_decisions
        columns.append((choice.gammas, drafted, np.minimum(drafted, acceptable), seconds))
    gammas, drafted, accepted, seconds = (np.stack(part, axis=1)[rows] for part in zip(*columns, strict=True))
    return gammas, drafted, accepted, seconds
