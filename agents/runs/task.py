# SPDX-License-Identifier: Apache-2.0
"""What a run controls: recordings by split, a clock, and the number to beat."""

import hashlib
import logging
from collections import defaultdict
from dataclasses import dataclass, replace

from agents.runs.settings import AS_TESTED, CostSettings, DataSettings, LearnSettings
from speckv.cost import CostTable, describe_clock
from speckv.errors import ConfigError, TraceError
from speckv.evaluation.compare import require_comparable, require_decode_steps, with_decode_steps
from speckv.evaluation.replays import FixedSweep, tune_fixed
from speckv.evaluation.text import format_rate, render_table
from speckv.traces import TraceSet, find_traces, split_validation
from speckv.types import GAMMA_MAX

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Recordings and clock of a run.

    Attributes:
        traces_name: Shipped name or path of the trace file that is tested on.
        train: Train prompts, validation prompts included: where the best fixed gamma is tuned.
        learning: Train prompts that the learner meets.
        validation: Train prompts that choose the best checkpoint.
        test: Test prompts.
        cost: The clock.
        sweep: Every fixed gamma on `train`.
        learning_cost: The clock while learning, `cost` unless a study says otherwise.
        validation_gammas: Compression -> best fixed gamma where the learner learns.
    """

    traces_name: str
    train: TraceSet
    learning: TraceSet
    validation: TraceSet
    test: TraceSet
    cost: CostTable
    sweep: FixedSweep
    learning_cost: CostTable
    validation_gammas: dict[str, int]

    @property
    def best_fixed_gammas(self) -> dict[str, int]:
        """Compression -> best fixed gamma on train prompts."""
        return self.sweep.best()

    @property
    def cost_sha256(self) -> str:
        """Hash of the cost table's times."""
        return self.cost.sha256


def load_splits(settings: DataSettings) -> tuple[TraceSet, TraceSet]:
    """Reads the train and the test prompts that the settings select.

    Raises:
        TraceError: if the file cannot be used or nothing is left.
    """
    traces = TraceSet.load(find_traces(settings.traces))
    chosen = with_decode_steps(traces.select(compressions=settings.compressions, tasks=settings.tasks))
    if missing := [split for split in ("train", "test") if all(s.split != split for s in chosen.sequences)]:
        raise TraceError(
            f"Expected train and test prompts in {settings.traces}, got none of split {missing[0]!r}"
            f"{' as selected' if settings.compressions or settings.tasks else ''}. Record prompts of both splits."
        )
    if (depth := chosen.metadata.gamma_max) < GAMMA_MAX:
        logger.warning("%s holds drafts of up to %d tokens: no controller drafts more.", settings.traces, depth)
    return chosen.select(split="train"), chosen.select(split="test")


def load_cost(settings: CostSettings) -> CostTable:
    """Reads the clock, at the load that the settings name.

    Raises:
        CostTableError: if there is no such table, or it does not cover the batch.
    """
    return CostTable.load(settings.table).at_batch(settings.batch)


def load_task(data: DataSettings, cost: CostSettings, learn: LearnSettings | None = None) -> Task:
    """Reads everything that a run needs and finds the number to beat.

    Args:
        data: Recordings.
        cost: Clock.
        learn: What learning meets, where that is other than what is tested.

    Raises:
        TraceError: if the recordings cannot be used.
        CostTableError: if a clock cannot be read or lacks a compression.
        ConfigError: if no prompt is left for learning or for validation, or a test prompt is among them, or the
            recordings to learn from are deeper than those to test on.
    """
    learn = learn or AS_TESTED
    train, test = load_splits(data)
    require_comparable(train, test)
    table = load_cost(cost)
    table.require((*train.compressions, *test.compressions))
    sweep = tune_fixed(train, table)
    material, clock, gammas = train, table, sweep.best()
    if learn.changes:
        chosen = replace(
            data,
            traces=learn.traces or data.traces,
            compressions=learn.compressions or data.compressions,
            tasks=learn.tasks or data.tasks,
        )
        material, _ = load_splits(chosen)
        clock = load_cost(replace(cost, table=learn.cost or cost.table))
        _require_fitting(material, test)
        gammas = tune_fixed(material, clock).best()
    try:
        learning, validation = split_validation(material, data.validation_fraction)
    except TraceError as error:
        raise ConfigError(
            f"Expected data.validation_fraction to leave prompts on both sides, got {data.validation_fraction} of "
            f"{len(material.prompt_ids)} train prompts. Choose another fraction or more prompts."
        ) from error
    learning = learning if learn.prompts is None else first_of_tasks(learning, learn.prompts)
    advice = "Choose another data.validation_fraction, or leave that compression out with data.compressions."
    require_decode_steps(learning, material.compressions, "train prompts to learn from", advice)
    require_decode_steps(validation, material.compressions, "train prompts to validate on", advice)
    return Task(
        traces_name=data.traces,
        train=train,
        learning=learning,
        validation=validation,
        test=test,
        cost=table,
        sweep=sweep,
        learning_cost=clock,
        validation_gammas=gammas,
    )


def first_of_tasks(traces: TraceSet, count: int) -> TraceSet:
    """Keeps some prompts of each task: the same ones every time, and all of a smaller number among those of a greater.

    Args:
        traces: Recordings.
        count: Prompts of each task to keep; all, where there are fewer.
    """
    tasks: dict[str, set[str]] = defaultdict(set)
    for sequence in traces.sequences:
        tasks[sequence.task].add(sequence.prompt_id)
    kept = {
        name
        for names in tasks.values()
        for name in sorted(names, key=lambda n: hashlib.sha256(f"first:{n}".encode()).hexdigest())[:count]
    }
    return traces.select(prompt_ids=kept)


def _require_fitting(material: TraceSet, test: TraceSet) -> None:
    if material.metadata.gamma_max > test.metadata.gamma_max:
        raise ConfigError(
            f"Expected learn.traces no deeper than data.traces, gamma_max {test.metadata.gamma_max}, got "
            f"{material.metadata.gamma_max}. Choose other recordings."
        )
    if shared := set(material.prompt_ids) & set(test.prompt_ids):
        raise ConfigError(
            f"Expected learn.traces to hold no test prompt of data.traces among its train prompts, got "
            f"{sorted(shared)[:3]}. Choose recordings that are split alike."
        )


def describe(task: Task) -> str:
    """The first screen of a run: what is controlled, on what, and the number to beat."""
    metadata, cost = task.train.metadata, task.cost
    throughputs = task.sweep.throughputs()
    rows = []
    for column, (compression, gamma) in enumerate(task.best_fixed_gammas.items()):
        best, plain = throughputs[gamma, column], throughputs[0, column]
        rows.append(
            (
                compression,
                metadata.dtype.get(compression, "?"),
                f"{cost.cost_ratio(compression):.3f}",
                format_rate(plain),
                str(gamma),
                format_rate(best),
                f"{best / plain:.3f}",
            )
        )
    header = (
        "compression",
        "dtype",
        "cost ratio",
        "plain tok/s",
        "best fixed gamma",
        "tok/s to beat",
        "x plain decoding",
    )
    learning, validation, test = (len(t.prompt_ids) for t in (task.learning, task.validation, task.test))
    return (
        f"target   {metadata.target_id}\n"
        f"draft    {metadata.draft_id}\n"
        f"traces   {task.traces_name}, sha256 {task.train.sha256[:16]}, {metadata.sampling['mode']}, "
        f"up to {metadata.max_new_tokens} tokens\n"
        f"prompts  {learning} to learn from, {validation} to validate on, {test} to test on; "
        f"tasks: {', '.join(task.train.tasks)}\n"
        f"cost     {cost.name} ({describe_clock(cost.kind, cost.checks)}), batch {cost.batch}, "
        f"sha256 {task.cost_sha256[:16]}\n\n"
        f"The number to beat: the best fixed gamma, tuned on the {len(task.train.prompt_ids)} train prompts\n"
        f"{render_table(header, rows)}\n"
    )
