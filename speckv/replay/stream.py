# SPDX-License-Identifier: Apache-2.0
"""One request after the other, for controllers that go on learning: what a server would see."""

from collections.abc import Sequence

from speckv.cost import CompiledCost
from speckv.replay.batch import ReplayBatch
from speckv.replay.compiled import CompiledTraces
from speckv.replay.control import decide
from speckv.replay.record import ReplayRecord
from speckv.replay.runs import Choice, run_to_end
from speckv.types import BoolArray, Controller, DecodedSteps, StepOutcome


def replay_stream(
    controller: Controller,
    compiled: CompiledTraces,
    cost: CompiledCost,
    *,
    order: Sequence[int] | None = None,
    controller_s: float | None = None,
    log: bool = False,
) -> ReplayRecord:
    """Lets a controller decode sequences in turn, telling it the outcome of every step.

    Args:
        controller: Decides once a step, or also inside steps (`StoppingController`); it may learn from step to step and
            from request to request.
        compiled: The recordings.
        cost: The times.
        order: Sequence indices in the order in which they come; as recorded by default.
        controller_s: Seconds charged for each decision; by default the cost table's where the controller charges any.
        log: Whether to keep every step.

    Returns:
        One row a sequence, in the order given.
    """
    charge = controller_s if controller_s is not None else cost.controller_s if controller.charges_decision else 0.0
    batch = ReplayBatch(compiled, cost, 1, controller_s=charge)

    def choose(batch: ReplayBatch) -> Choice:
        return decide(batch, controller)

    def tell(step: DecodedSteps, where: BoolArray) -> None:
        del where  # the only slot always makes the step
        controller.learn(outcome_of(step, batch))

    records = []
    for sequence in range(len(compiled)) if order is None else order:
        controller.reset()
        batch.assign([0], [sequence])
        records.append(run_to_end(batch, choose, log=log, remember=tell))
    return ReplayRecord.concatenate(records)


def outcome_of(step: DecodedSteps, batch: ReplayBatch) -> StepOutcome:
    """What the step of the only slot came to, as a controller that learns is told."""
    drafted, accepted = int(step.num_drafted[0]), int(step.num_accepted[0])
    entropy, confidence = batch.history.target[0].tolist()
    return StepOutcome(
        gamma=int(step.gamma[0]),
        num_drafted=drafted,
        num_accepted=accepted,
        num_tested=min(accepted + 1, drafted),
        num_emitted=int(step.num_emitted[0]),
        draft_signals=step.draft_signals[0, :drafted],
        target_entropy=entropy,
        target_confidence=confidence,
        # As live: the decision before a step is not part of the step's time, decisions inside it are.
        seconds=float(step.seconds[0]) - batch.controller_s,
        finish=None if batch.running[0] else "eos" if batch.ends_text[0] else "length",
    )
