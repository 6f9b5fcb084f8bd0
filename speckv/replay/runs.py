# SPDX-License-Identifier: Apache-2.0
"""Whole sequences under one policy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speckv.cost import CompiledCost
from speckv.replay.batch import ReplayBatch, ReplayStep
from speckv.replay.compiled import CompiledTraces
from speckv.replay.record import ReplayRecord, StepLog
from speckv.types import BoolArray, DecodedSteps, FloatArray, IntArray


def replay_policy(
    compiled: CompiledTraces,
    cost: CompiledCost,
    policy: Callable[[FloatArray], ArrayLike],
    *,
    controller_s: float = 0.0,
    budget: int | None = None,
    acceptance: str = "recorded",
    rng: np.random.Generator | None = None,
    log: bool = False,
) -> ReplayRecord:
    """Lets one policy decode every sequence, all of them side by side.

    Args:
        compiled: The recordings.
        cost: The times.
        policy: Maps observations of shape [S, features] to S speculation lengths. Row k is sequence k at every call;
            once a sequence has ended its row is stale and the answer is ignored.
        controller_s: Seconds charged at every step for deciding.
        budget: Token budget, at most the recording's, which is the default.
        acceptance: As for `ReplayBatch`.
        rng: As for `ReplayBatch`.
        log: Whether to keep every step.
    """
    batch = ReplayBatch(
        compiled, cost, len(compiled), budget=budget, acceptance=acceptance, controller_s=controller_s, rng=rng
    )
    batch.assign(np.arange(len(compiled)), np.arange(len(compiled)))
    return run_to_end(batch, lambda running: Choice(gammas=np.asarray(policy(running.observe()))), log=log)


def replay_fixed(
    compiled: CompiledTraces, cost: CompiledCost, gamma: int, *, budget: int | None = None, log: bool = False
) -> ReplayRecord:
    """Decodes every sequence with one speculation length, which costs no decision."""
    batch = ReplayBatch(compiled, cost, len(compiled), budget=budget)
    batch.assign(np.arange(len(compiled)), np.arange(len(compiled)))
    choice = Choice(gammas=np.full(len(compiled), gamma, np.int64))
    return run_to_end(batch, lambda _: choice, log=log)


def autoregressive(
    compiled: CompiledTraces, cost: CompiledCost, *, budget: int | None = None, log: bool = False
) -> ReplayRecord:
    """Decodes every sequence with the target alone."""
    return replay_fixed(compiled, cost, 0, budget=budget, log=log)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What was decided for the next step of each slot.

    Attributes:
        gammas: Shape [N]; tokens to draft.
        num_decisions: Decisions that it took.
    """

    gammas: IntArray
    num_decisions: IntArray | int = 1


def run_to_end(
    batch: ReplayBatch,
    choose: Callable[[ReplayBatch], Choice],
    *,
    log: bool = False,
    remember: Callable[[DecodedSteps, BoolArray], None] | None = None,
) -> ReplayRecord:
    """Steps a batch until every slot's sequence has ended.

    Args:
        batch: Slots with a sequence each.
        choose: Decides for every slot.
        log: Whether to keep every step.
        remember: Told what every step did, and which slots made one.
    """
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
            remember(_decoded(gammas, step, batch.draft_signals(position)), running)
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


def _decoded(gammas: IntArray, step: ReplayStep, draft_signals: FloatArray) -> DecodedSteps:
    return DecodedSteps(
        gamma=gammas,
        num_drafted=step.num_drafted,
        num_accepted=step.num_accepted,
        num_emitted=step.num_emitted,
        draft_signals=draft_signals,
        seconds=step.seconds,
    )


def _as_log(steps: Sequence[Mapping[str, NDArray[Any]]]) -> StepLog:
    columns = {
        f.name: np.concatenate([np.zeros(0, np.int64), *(step[f.name] for step in steps)]) for f in fields(StepLog)
    }
    return StepLog(**columns)
