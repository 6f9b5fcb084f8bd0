# SPDX-License-Identifier: Apache-2.0
"""Whole recordings under one controller, whatever it decides and remembers."""

from dataclasses import dataclass

import numpy as np

from speckv.cost import CompiledCost
from speckv.replay.batch import ReplayBatch
from speckv.replay.compiled import CompiledTraces
from speckv.replay.record import ReplayRecord
from speckv.replay.runs import Choice, run_to_end
from speckv.types import BatchMemory, BoolArray, Controller, FloatArray, IntArray, StoppingController


def replay_controller(
    controller: Controller,
    compiled: CompiledTraces,
    cost: CompiledCost,
    *,
    controller_s: float | None = None,
    budget: int | None = None,
    log: bool = False,
) -> ReplayRecord:
    """Lets a controller decode every sequence, all of them side by side; each is a request of its own.

    Args:
        controller: One that decides once a step, or also inside steps (`StoppingController`); if it remembers anything
            about a request besides the observation, it is a `BatchMemory`.
        compiled: The recordings.
        cost: The times.
        controller_s: Seconds charged for each decision; by default the cost table's where the controller charges any.
        budget: Token budget, at most the recording's, which is the default.
        log: Whether to keep every step.
    """
    charge = controller_s if controller_s is not None else cost.controller_s if controller.charges_decision else 0.0
    batch = ReplayBatch(compiled, cost, len(compiled), budget=budget, controller_s=charge)
    batch.assign(np.arange(len(compiled)), np.arange(len(compiled)))
    memory = controller if isinstance(controller, BatchMemory) else None
    controller.reset()
    if memory is not None:
        memory.start(len(compiled))

    def choose(running: ReplayBatch) -> Choice:
        return decide(running, controller)

    return run_to_end(batch, choose, log=log, remember=memory.remember if memory else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitedStates:
    """Where decode steps began, and what any draft from there would have come to.

    Attributes:
        observations: Shape [M, features]; before the step.
        places: Shape [M]; where the step began, as a row of the recordings' flat arrays.
        limits: Shape [M]; most tokens that could be drafted, 0 where none could.
        accepted: Shape [M]; how many of the deepest draft are accepted.
    """

    observations: FloatArray
    places: IntArray
    limits: IntArray
    accepted: IntArray


def visit(compiled: CompiledTraces, cost: CompiledCost, controller: Controller) -> VisitedStates:
    """Collects every state that a controller meets on its way through the recordings."""
    found: list[tuple[FloatArray, IntArray, IntArray, IntArray]] = []
    batch = ReplayBatch(compiled, cost, len(compiled))
    batch.assign(np.arange(len(compiled)), np.arange(len(compiled)))
    memory = controller if isinstance(controller, BatchMemory) else None
    controller.reset()
    if memory is not None:
        memory.start(len(compiled))

    def choose(batch: ReplayBatch) -> Choice:
        rows = np.flatnonzero(batch.running)
        limits, accepted = batch.draft_limits(np.minimum(batch.history.emitted, batch.length))
        limits = np.maximum(limits, 0)
        places = batch.places(batch.history.emitted)
        found.append((batch.observe()[rows], places[rows], limits[rows], np.minimum(accepted, limits)[rows]))
        return decide(batch, controller)

    run_to_end(batch, choose, remember=memory.remember if memory else None)
    observations, places, limits, accepted = (np.concatenate(part) for part in zip(*found, strict=True))
    return VisitedStates(observations=observations, places=places, limits=limits, accepted=accepted)


def decide(batch: ReplayBatch, controller: Controller) -> Choice:
    """What a controller does in the next step of every slot: its gamma, or where it stops drafting.

    Args:
        batch: Slots with a sequence each, some perhaps ended.
        controller: Any.
    """
    observations = batch.observe()
    gammas = np.asarray(controller.act_batch(observations), np.int64)
    if not isinstance(controller, StoppingController):
        return Choice(gammas=gammas)
    return _draft_token_by_token(batch, controller, observations, gammas)


def _draft_token_by_token(
    batch: ReplayBatch, controller: StoppingController, observations: FloatArray, most: IntArray
) -> Choice:
    position = batch.history.emitted
    limit, _ = batch.draft_limits(np.minimum(position, batch.length))
    # What cannot be drafted is not asked about; the gamma asked for is then the cap, as live.
    reachable = np.minimum(most, np.maximum(limit, 0))
    drafting: BoolArray = (reachable > 0) & batch.running
    depth = drafting.astype(np.int64)
    stopped = np.zeros(len(depth), np.bool_)
    num_decisions = np.ones(len(depth), np.int64)
    drafting &= depth < reachable
    while drafting.any():
        seen = batch.observe_draft(observations, depth)
        goes_on = np.asarray(controller.go_on_batch(seen), np.bool_)
        num_decisions += drafting
        stopped |= drafting & ~goes_on
        drafting &= goes_on
        depth += drafting
        drafting &= depth < reachable
    return Choice(gammas=np.where(stopped, depth, most), num_decisions=num_decisions)
