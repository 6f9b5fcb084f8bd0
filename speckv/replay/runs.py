# SPDX-License-Identifier: Apache-2.0
"""Replays of whole sequences under one controller, and what they add up to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speckv.cost import CompiledCost
from speckv.replay.batch import CompiledTraces, ReplayBatch
from speckv.types import (
    BatchMemory,
    BoolArray,
    Controller,
    DecodedSteps,
    FloatArray,
    IntArray,
    StepOutcome,
    StoppingController,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLog:
    """Every decode step of a replay, in order; `sequence` is the row of the record that made the step."""

    sequence: IntArray
    position: IntArray
    gamma: IntArray
    num_drafted: IntArray
    num_accepted: IntArray
    num_emitted: IntArray
    seconds: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRecord:
    """Sums over each sequence, arrays of shape [S] without prefill; rates are sums divided by sums.

    `gamma_counts`, of shape [S, gamma_max + 1], counts the requested speculation lengths.
    """

    prompt_ids: tuple[str, ...]
    tasks: tuple[str, ...]
    compressions: tuple[str, ...]
    num_tokens: IntArray
    seconds: NDArray[np.float64]
    num_steps: IntArray
    num_drafted: IntArray
    num_accepted: IntArray
    num_tested: IntArray
    gamma_counts: IntArray
    log: StepLog | None = None

    @property
    def throughput(self) -> float:
        """Tokens a second, over all sequences."""
        return _ratio(self.num_tokens.sum(), self.seconds.sum())

    @property
    def block_efficiency(self) -> float:
        """Tokens emitted a target pass."""
        return _ratio(self.num_tokens.sum(), self.num_steps.sum())

    @property
    def acceptance_rate(self) -> float:
        """Accepted over tested tokens."""
        return _ratio(self.num_accepted.sum(), self.num_tested.sum())

    def take(self, rows: Sequence[int]) -> "ReplayRecord":
        """Some sequences in another order, without the log."""
        columns = {name: getattr(self, name) for name in _PER_SEQUENCE}
        taken: dict[str, Any] = {
            name: tuple(column[row] for row in rows) if isinstance(column, tuple) else column[list(rows)]
            for name, column in columns.items()
        }
        return ReplayRecord(**taken)

    @staticmethod
    def concatenate(parts: Sequence["ReplayRecord"]) -> "ReplayRecord":
        """Joins records of different sequences; logs are joined if all have one."""
        joined: dict[str, Any] = {"log": _concatenate_logs(parts)}
        for name in _PER_SEQUENCE:
            columns = [getattr(part, name) for part in parts]
            joined[name] = tuple(chain(*columns)) if isinstance(columns[0], tuple) else np.concatenate(columns)
        return ReplayRecord(**joined)


_PER_SEQUENCE = tuple(f.name for f in fields(ReplayRecord) if f.name != "log")


def _ratio(numerator: float | np.int64, denominator: float | np.int64) -> float:
    return float(numerator) / float(denominator) if denominator else float("nan")


def _concatenate_logs(parts: Sequence[ReplayRecord]) -> StepLog | None:
    logs = [part.log for part in parts if part.log is not None]
    if len(logs) < len(parts):
        return None
    starts = np.cumsum([0, *(len(part.num_steps) for part in parts[:-1])])
    columns = {f.name: np.concatenate([getattr(log, f.name) for log in logs]) for f in fields(StepLog)}
    columns["sequence"] = np.concatenate([log.sequence + start for log, start in zip(logs, starts, strict=True)])
    return StepLog(**columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Tokens to draft in the next step of each slot, shape [N], and the number of decisions taken for it."""

    gammas: IntArray
    num_decisions: IntArray | int = 1


def replay_policy(
    compiled: CompiledTraces,
    cost: CompiledCost,
    policy: Callable[[FloatArray], ArrayLike],
    *,
    log: bool = False,
    **settings: Any,
) -> ReplayRecord:
    """Decodes every sequence, all side by side, with a map from observations [S, features] to S speculation lengths.

    Row k is always sequence k; once it has ended its answer is ignored. `settings` are those of `ReplayBatch`.
    """
    batch = _all_at_once(compiled, cost, **settings)
    return run_to_end(batch, lambda running: Choice(gammas=np.asarray(policy(running.observe()))), log=log)


def replay_fixed(
    compiled: CompiledTraces, cost: CompiledCost, gamma: int, *, budget: int | None = None, log: bool = False
) -> ReplayRecord:
    """Decodes every sequence with one speculation length, which costs no decision; 0 is plain decoding."""
    choice = Choice(gammas=np.full(len(compiled), gamma, np.int64))
    return run_to_end(_all_at_once(compiled, cost, budget=budget), lambda _: choice, log=log)


def replay_controller(
    controller: Controller,
    compiled: CompiledTraces,
    cost: CompiledCost,
    *,
    controller_s: float | None = None,
    budget: int | None = None,
    log: bool = False,
) -> ReplayRecord:
    """Decodes every sequence with a controller, all of them side by side; each is a request of its own.

    A controller with memory besides the observation must be a `BatchMemory`. A decision takes the cost table's
    `controller_s` by default, if the controller charges any.
    """
    batch = _all_at_once(compiled, cost, budget=budget, controller_s=_decision_s(controller, cost, controller_s))
    remember = _begin_requests(controller, len(compiled))
    return run_to_end(batch, lambda running: decide(running, controller), log=log, remember=remember)


def replay_stream(
    controller: Controller,
    compiled: CompiledTraces,
    cost: CompiledCost,
    *,
    order: Sequence[int] | None = None,
    controller_s: float | None = None,
    log: bool = False,
    shown: Callable[[StepOutcome], StepOutcome] = lambda outcome: outcome,
) -> ReplayRecord:
    """Decodes one sequence after the other, in `order`, with a controller that learns from every step's outcome.

    `shown` may change what the controller is shown of a step, such as its times; the record keeps the truth.
    """
    batch = ReplayBatch(compiled, cost, 1, controller_s=_decision_s(controller, cost, controller_s))

    first_s, more_s = 0.0, 0.0

    def choose(batch: ReplayBatch) -> Choice:
        nonlocal first_s, more_s
        first_s, more_s = (float(batch.draft_pass_seconds(np.full(1, depth))[0]) for depth in (0, 1))
        return decide(batch, controller)

    def learn(step: DecodedSteps, where: BoolArray) -> None:
        del where  # the only slot always makes the step
        controller.learn(shown(outcome_of(step, batch, first_s, more_s)))

    records = []
    for sequence in range(len(compiled)) if order is None else order:
        controller.reset()
        batch.assign([0], [sequence])
        records.append(run_to_end(batch, choose, log=log, remember=learn))
    return ReplayRecord.concatenate(records)


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitedStates:
    """States in which decode steps began, and the outcome of any draft from there; arrays of M rows.

    Attributes:
        places: Where the step began, as a row of the recordings' flat arrays.
        limits: Most tokens that could be drafted, 0 where none could.
        accepted: How many of the deepest draft are accepted.
    """

    observations: FloatArray
    places: IntArray
    limits: IntArray
    accepted: IntArray


def visit(compiled: CompiledTraces, cost: CompiledCost, controller: Controller) -> VisitedStates:
    """Collects every state that a controller reaches while it decodes the recordings."""
    found: list[tuple[FloatArray, IntArray, IntArray, IntArray]] = []
    batch = _all_at_once(compiled, cost)
    remember = _begin_requests(controller, len(compiled))

    def choose(batch: ReplayBatch) -> Choice:
        rows = np.flatnonzero(batch.running)
        limits, accepted = batch.draft_limits(np.minimum(batch.history.emitted, batch.length))
        limits = np.maximum(limits, 0)
        places = batch.places(batch.history.emitted)
        found.append((batch.observe()[rows], places[rows], limits[rows], np.minimum(accepted, limits)[rows]))
        return decide(batch, controller)

    run_to_end(batch, choose, remember=remember)
    observations, places, limits, accepted = (np.concatenate(part) for part in zip(*found, strict=True))
    return VisitedStates(observations=observations, places=places, limits=limits, accepted=accepted)


def _all_at_once(compiled: CompiledTraces, cost: CompiledCost, **settings: Any) -> ReplayBatch:
    batch = ReplayBatch(compiled, cost, len(compiled), **settings)
    batch.assign(np.arange(len(compiled)), np.arange(len(compiled)))
    return batch


def _decision_s(controller: Controller, cost: CompiledCost, given: float | None) -> float:
    if given is not None:
        return given
    return cost.controller_s if controller.charges_decision else 0.0


def _begin_requests(controller: Controller, number: int) -> "Remember | None":
    controller.reset()
    if not isinstance(controller, BatchMemory):
        return None
    controller.start(number)
    return controller.remember


def decide(batch: ReplayBatch, controller: Controller) -> Choice:
    """A controller's decision in every slot: the gamma of the next step, or where it stops drafting."""
    observations = batch.observe()
    gammas = np.asarray(controller.act_batch(observations), np.int64)
    if not isinstance(controller, StoppingController):
        return Choice(gammas=gammas)
    limit, _ = batch.draft_limits(np.minimum(batch.history.emitted, batch.length))
    # No decision is taken where nothing more can be drafted; the gamma asked for is then the cap, as live.
    reachable = np.minimum(gammas, np.maximum(limit, 0))
    drafting: BoolArray = (reachable > 0) & batch.running
    depth = drafting.astype(np.int64)
    stopped = np.zeros(len(depth), np.bool_)
    num_decisions = np.ones(len(depth), np.int64)
    drafting &= depth < reachable
    while drafting.any():
        goes_on = np.asarray(controller.go_on_batch(batch.observe_draft(observations, depth)), np.bool_)
        num_decisions += drafting
        stopped |= drafting & ~goes_on
        drafting &= goes_on
        depth += drafting
        drafting &= depth < reachable
    return Choice(gammas=np.where(stopped, depth, gammas), num_decisions=num_decisions)


Remember = Callable[[DecodedSteps, BoolArray], None]
"""Called after every step with what it did and a mask of the slots that made one."""


def run_to_end(
    batch: ReplayBatch,
    choose: Callable[[ReplayBatch], Choice],
    *,
    log: bool = False,
    remember: Remember | None = None,
) -> ReplayRecord:
    """Steps a batch, with a sequence in every slot, until all have ended."""
    number, compiled = batch.num_slots, batch.compiled
    sums = {name: np.zeros(number, np.int64) for name in ("num_drafted", "num_accepted", "num_tested", "num_emitted")}
    num_steps, seconds = np.zeros(number, np.int64), np.zeros(number)
    counts = np.zeros((number, compiled.gamma_max + 1), np.int64)
    steps: list[Mapping[str, NDArray[Any]]] = []
    while (running := batch.running).any():
        position = batch.history.emitted
        choice = choose(batch)
        gammas = choice.gammas
        step = batch.step(gammas, running, choice.num_decisions)
        rows = np.flatnonzero(running)
        counts[rows, gammas[rows]] += 1
        num_steps += running
        seconds += step.seconds
        for name, total in sums.items():
            total += getattr(step, name)
        if remember is not None:
            decoded = DecodedSteps(
                gamma=gammas,
                num_drafted=step.num_drafted,
                num_accepted=step.num_accepted,
                num_emitted=step.num_emitted,
                draft_signals=batch.draft_signals(position),
                seconds=step.seconds,
            )
            remember(decoded, running)
        if log:
            columns = {"position": position, "gamma": gammas, "seconds": step.seconds}
            columns |= {name: getattr(step, name) for name in ("num_drafted", "num_accepted", "num_emitted")}
            steps.append({"sequence": rows} | {name: column[rows] for name, column in columns.items()})
    return ReplayRecord(
        prompt_ids=tuple(compiled.prompt_ids[s] for s in batch.sequence),
        tasks=tuple(compiled.tasks[s] for s in batch.sequence),
        compressions=tuple(compiled.compressions[s] for s in batch.sequence),
        num_tokens=sums.pop("num_emitted"),
        seconds=seconds,
        num_steps=num_steps,
        gamma_counts=counts,
        log=_as_log(steps) if log else None,
        **sums,
    )


def _as_log(steps: Sequence[Mapping[str, NDArray[Any]]]) -> StepLog:
    columns = {
        f.name: np.concatenate([np.zeros(0, np.int64), *(step[f.name] for step in steps)]) for f in fields(StepLog)
    }
    return StepLog(**columns)


def outcome_of(step: DecodedSteps, batch: ReplayBatch, first_s: float = 0.0, more_s: float = 0.0) -> StepOutcome:
    """The outcome of a step of the only slot, as a controller learns from it.

    `first_s` and `more_s` are the seconds of the step's first draft pass and of a further one.
    """
    drafted, accepted = int(step.num_drafted[0]), int(step.num_accepted[0])
    entropy, confidence = batch.history.target[0].tolist()
    # As live: the decision before a step is not part of the step's time, decisions inside it are.
    seconds = float(step.seconds[0]) - batch.controller_s
    draft_s = first_s + (drafted - 1) * more_s if drafted else 0.0
    return StepOutcome(
        gamma=int(step.gamma[0]),
        num_drafted=drafted,
        num_accepted=accepted,
        num_tested=min(accepted + 1, drafted),
        num_emitted=int(step.num_emitted[0]),
        draft_signals=step.draft_signals[0, :drafted],
        target_entropy=entropy,
        target_confidence=confidence,
        seconds=seconds,
        draft_s=draft_s,
        first_draft_s=first_s if drafted else 0.0,
        verify_s=seconds - draft_s,
        finish=None if batch.running[0] else "eos" if batch.ends_text[0] else "length",
    )
