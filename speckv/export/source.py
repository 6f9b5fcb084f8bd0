# SPDX-License-Identifier: Apache-2.0
"""What a policy is exported from: its folder, and the recordings and the clock that it was trained on."""

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
    """A controller's folder and what it was trained on.

    Attributes:
        folder: A run folder or a policy's folder.
        traces: Recordings; compressions that the clock does not know are left out.
        cost: The clock, at one sequence at a time.
        cost_sha256: Hash of its file.
    """

    folder: Path
    traces: TraceSet
    cost: CostTable
    cost_sha256: str

    @staticmethod
    def find(run: str, *, cost: str | None = None, traces: str | None = None) -> "Source":
        """Finds everything by what the run folder says.

        Args:
            run: A run folder, a policy's folder, or "shipped" for the policy that comes with a cost table.
            cost: Name or path of a cost table; by default the run's.
            traces: Name or path of a trace file; by default the run's.

        Raises:
            CheckpointError: if there is no such folder, or it does not say what it was trained on and nobody else does.
            ConfigError: if nobody named the table of a shipped policy.
            CostTableError, TraceError: if table or file cannot be had.
        """
        folder = controller_folder(run, cost)
        facts = read_facts(folder)
        cost = cost or read_fact(facts, "cost", "table") or read_fact(facts, "cost", "name")
        traces = traces or read_fact(facts, "traces", "name") or (_DEFAULT_TRACES if run == SHIPPED_WORD else "")
        if not cost or not traces:
            missing = "--traces" if cost else "--cost"
            raise CheckpointError(f"{folder} does not say what it was trained on. Give {missing} NAME.")
        path = find_cost_table(cost)
        table, recorded = CostTable.load(path), TraceSet.load(find_traces(traces))
        known = [name for name in recorded.compressions if name in table.compressions]
        return Source(
            folder=folder,
            traces=with_decode_steps(recorded.select(compressions=known)),
            cost=table.at_batch(1),
            cost_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
