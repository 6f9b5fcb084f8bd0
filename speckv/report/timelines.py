# SPDX-License-Identifier: Apache-2.0
"""Prompts that a reader can step through: every player's steps, and the choices of the others in each of them."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from speckv.cost import CompiledCost
from speckv.evaluation.replays import STREAM_SEED
from speckv.evaluation.results import rounded
from speckv.replay import CompiledTraces, OptimalPlan, ReplayBatch, decide, outcome_of, plan_optimum, replay_stream
from speckv.replay.optimum import sequences_at_once
from speckv.replay.runs import Choice, run_to_end
from speckv.report.texts import TokenTexts
from speckv.traces import TraceSequence
from speckv.types import BatchMemory, BoolArray, Controller, DecodedSteps, OnlineLearner

_CONFIDENCE = 1
"""Index of the confidence among a token's signals."""
LearnerStates = dict[int, Controller]
"""Sequence -> copy of a learner at the start of that request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A player's choice in a state and its result; `seconds` include the decisions."""

    gamma: int
    num_drafted: int
    num_accepted: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the driver, after `position` emitted tokens.

    `chosen` holds each player's choice in this state, in the players' order; the driver's was carried out.
    """

    position: int
    num_emitted: int
    chosen: tuple[Chosen, ...]


class Player:
    """A decision maker of a replay: a controller, or the clairvoyant if none is given.

    A learner is replaced at each request by a copy of its state there, from `learned`.
    """

    def __init__(self, name: str, controller: Controller | None = None, learned: LearnerStates | None = None) -> None:
        self.name, self.learned = name, learned
        self._controller = controller
        self._plan: OptimalPlan | None = None
        self._memory: BatchMemory | None = None

    def decision_s(self, cost: CompiledCost) -> float:
        """Time of one decision."""
        return cost.controller_s if self._controller is not None and self._controller.charges_decision else 0.0

    def begin(self, batch: ReplayBatch) -> None:
        """Prepares for the requests of a batch; a learner's batch is a single request."""
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
        """Records a step; a learner learns only from its own steps."""
        if self.learned is not None:
            if drives and self._controller is not None:
                self._controller.learn(outcome_of(step, batch))
        elif self._memory is not None:
            self._memory.remember(step, where)


def players_of(
    controllers: Sequence[Controller], compiled: CompiledTraces, cost: CompiledCost, sequences: Sequence[int]
) -> list[Player]:
    """A player per controller, for some sequences; learners learn from all of `compiled`, in evaluation order."""
    return [
        Player(
            controller.name,
            copy.deepcopy(controller),
            _learner_states(controller, compiled, cost, sequences) if isinstance(controller, OnlineLearner) else None,
        )
        for controller in controllers
    ]


def _learner_states(
    controller: OnlineLearner, compiled: CompiledTraces, cost: CompiledCost, sequences: Sequence[int]
) -> LearnerStates:
    learner, learned = copy.deepcopy(controller), LearnerStates()
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
    """Steps of each sequence under the driver, with the choices of all players in the driver's state."""
    # A learner's state differs between requests, so a learner requires one request at a time.
    size = 1 if any(player.learned is not None for player in players) else sequences_at_once(compiled)
    groups = [sequences[start : start + size] for start in range(0, len(sequences), size)]
    return [steps for group in groups for steps in _follow_batch(driver, players, compiled, cost, group)]


def _follow_batch(
    driver: Player, players: Sequence[Player], compiled: CompiledTraces, cost: CompiledCost, sequences: Sequence[int]
) -> Iterator[tuple[Step, ...]]:
    batch = ReplayBatch(compiled, cost, len(sequences), controller_s=driver.decision_s(cost))
    batch.assign(np.arange(len(sequences)), np.asarray(sequences))
    for player in players:
        player.begin(batch)
    found: list[tuple[Chosen, ...]] = []

    def choose(running: ReplayBatch) -> Choice:
        choices = [player.choose(running) for player in players]
        found.extend(_choices_in(running, players, choices))
        return choices[players.index(driver)]

    def remember(step: DecodedSteps, where: BoolArray) -> None:
        for player in players:
            player.remember(step, where, batch, drives=player is driver)

    log = run_to_end(batch, choose, log=True, remember=remember).log
    assert log is not None
    for slot in range(len(sequences)):
        rows = np.flatnonzero(log.sequence == slot)
        yield tuple(
            Step(position=int(log.position[row]), num_emitted=int(log.num_emitted[row]), chosen=found[row])
            for row in rows
        )


def _choices_in(batch: ReplayBatch, players: Sequence[Player], choices: Sequence[Choice]) -> list[tuple[Chosen, ...]]:
    limit, acceptable = batch.draft_limits(np.minimum(batch.history.emitted, batch.length))
    columns = []
    for player, choice in zip(players, choices, strict=True):
        drafted = np.minimum(choice.gammas, np.maximum(limit, 0))
        accepted = np.minimum(drafted, acceptable)
        seconds = batch.step_seconds(drafted) + player.decision_s(batch.cost) * choice.num_decisions
        columns.append(
            [
                Chosen(
                    gamma=int(choice.gammas[slot]),
                    num_drafted=int(drafted[slot]),
                    num_accepted=int(accepted[slot]),
                    seconds=float(seconds[slot]),
                )
                for slot in np.flatnonzero(batch.running)
            ]
        )
    return list(zip(*columns, strict=True))


def make_timelines(
    players: Sequence[Player],
    compiled: CompiledTraces,
    cost: CompiledCost,
    sequences: Sequence[int],
    *,
    texts: TokenTexts,
    prompts: Mapping[str, str],
) -> list[dict[str, object]]:
    """Replays every sequence under every player, as plain data: one object per sequence.

    `walks` holds the steps of each player, each a list: [position, emitted tokens, choices, rejected tokens]. A choice,
    one per player, is [gamma, drafted, accepted, milliseconds]. A rejected token is [text, draft's confidence in %].
    """
    walks = [follow(player, players, compiled, cost, sequences) for player in players]
    return [
        _timeline(compiled.traces.sequences[sequence], [walk[row] for walk in walks], texts, prompts)
        for row, sequence in enumerate(sequences)
    ]


def _timeline(
    sequence: TraceSequence, walks: Sequence[Sequence[Step]], texts: TokenTexts, prompts: Mapping[str, str]
) -> dict[str, object]:
    confidence = sequence.draft_signals[:, _CONFIDENCE]
    return {
        "prompt_id": sequence.prompt_id,
        "prompt": prompts.get(sequence.prompt_id),
        "task": sequence.task,
        "compression": sequence.compression,
        "finish": sequence.finish,
        "texts": texts.emitted(sequence.tokens.tolist()),
        "confidence": [_per_cent(value) for value in confidence.tolist()],
        "walks": [
            [_step(step, step.chosen[number], sequence, texts) for step in walk] for number, walk in enumerate(walks)
        ],
    }


def _step(step: Step, own: Chosen, sequence: TraceSequence, texts: TokenTexts) -> list[object]:
    choices = [[c.gamma, c.num_drafted, c.num_accepted, rounded(1000 * c.seconds)] for c in step.chosen]
    drafted, signals = sequence.draft_from(step.position, own.num_drafted)
    kept = step.position + own.num_accepted
    words = texts.after(sequence.tokens[:kept].tolist(), drafted[own.num_accepted :].tolist())
    sure = [_per_cent(value) for value in signals[own.num_accepted :, _CONFIDENCE].tolist()]
    return [step.position, step.num_emitted, choices, [list(pair) for pair in zip(words, sure, strict=True)]]


def _per_cent(share: float) -> int:
    return round(100 * share)
