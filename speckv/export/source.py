# SPDX-License-Identifier: Apache-2.0
"""The source of an export: a policy's folder, and the recordings and cost table that it was trained on."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from speckv.cost import CostTable
from speckv.cost.table import find_cost_table
from speckv.errors import CheckpointError
from speckv.evaluation.compare import with_decode_steps
from speckv.evaluation.run_facts import SHIPPED_WORD, controller_folder, read_fact, read_facts
from speckv.traces import TraceSet, find_traces

_DEFAULT_TRACES = "qwen2.5-coder-greedy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A controller's folder and its training data, without compressions that the cost table lacks.

    The cost table is taken at batch 1; the hash is that of its file.
    """

    folder: Path
    traces: TraceSet
    cost: CostTable
    cost_sha256: str

    @staticmethod
    def find(run: str, *, cost: str | None = None, traces: str | None = None) -> "Source":
        """Finds a run folder, a policy's folder, or with "shipped" a shipped policy, and its training data.

        Cost table and trace file, each a name or path, are by default the run's.

        Raises:
            CheckpointError: if there is no such folder, or it does not record its training data.
            ConfigError: if "shipped" comes without a cost table.
            CostTableError, TraceError: if table or recordings are missing or damaged.
        """
        folder = controller_folder(run, cost)
        facts = read_facts(folder)
        cost = cost or read_fact(facts, "cost", "table") or read_fact(facts, "cost", "name")
        traces = traces or read_fact(facts, "traces", "name") or (_DEFAULT_TRACES if run == SHIPPED_WORD else "")
        if not cost or not traces:
            missing = "--traces" if cost else "--cost"
            raise CheckpointError(f"Expected {folder} to record its training data, found none. Give {missing} NAME.")
        path = find_cost_table(cost)
        table, recorded = CostTable.load(path), TraceSet.load(find_traces(traces))
        known = [name for name in recorded.compressions if name in table.compressions]
        return Source(
            folder=folder,
            traces=with_decode_steps(recorded.select(compressions=known)),
            cost=table.at_batch(1),
            cost_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
