# SPDX-License-Identifier: Apache-2.0
"""The source of an export: a policy's folder, and the recordings and cost table that it was trained on."""

from dataclasses import dataclass, replace
from pathlib import Path

from speckv.cost import CostTable
from speckv.cost.times import LiveStepTimes
from speckv.errors import CheckpointError
from speckv.evaluation.compare import with_decode_steps
from speckv.evaluation.run_facts import controller_folder, read_fact, read_facts
from speckv.runtime import Policy
from speckv.runtime.shipped import SHIPPED, with_cost_table
from speckv.runtime.storage import find_policy
from speckv.traces import TraceSet, find_traces

COST = "cpu-2core"
"""Cost table of a shipped policy without one: its best fixed gammas are the fallback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A controller's folder and its training data, without compressions that the cost table lacks.

    The cost table is taken at batch 1.
    """

    folder: Path
    traces: TraceSet
    cost: CostTable

    @staticmethod
    def find(run: str, *, cost: str | None = None, traces: str | None = None) -> "Source":
        """Finds a run folder, a policy's folder or a shipped policy, and its training data.

        Cost table and trace file, each a name or path, are by default the run's.

        Raises:
            CheckpointError: if there is no such folder, or it does not record its training data.
            CostTableError, TraceError: if table or recordings are missing or damaged.
        """
        folder = controller_folder(run, traces)
        facts = read_facts(folder)
        shipped = Policy.load(folder).trained_on if folder.parent == SHIPPED and find_policy(folder) else {}
        cost = cost or read_fact(facts, "cost", "table") or read_fact(facts, "cost", "name")
        cost = cost or shipped.get("cost", COST if shipped else None)
        traces = traces or read_fact(facts, "traces", "name") or shipped.get("traces")
        if not cost or not traces:
            missing = "--traces" if cost else "--cost"
            raise CheckpointError(f"Expected {folder} to record its training data, found none. Give {missing} NAME.")
        table, recorded = CostTable.load(cost), TraceSet.load(find_traces(traces))
        known = [name for name in recorded.compressions if name in table.compressions]
        return Source(
            folder=folder,
            traces=with_decode_steps(recorded.select(compressions=known)),
            cost=table.at_batch(1),
        )

    def policy(self) -> Policy:
        """Loads the policy."""
        return Policy.load(self.folder)

    def told(self, policy: Policy) -> Policy:
        """A policy that learns times, with those of the cost table instead; others as they are."""
        times = getattr(policy.controller, "times", None)
        if not isinstance(times, LiveStepTimes):
            return policy
        controller = with_cost_table(policy.controller, self.cost, policy.compressions)
        return replace(policy, controller=controller, learns=False)
