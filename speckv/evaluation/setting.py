# SPDX-License-Identifier: Apache-2.0
"""What a comparison was made on: without it no figure means anything."""

from collections.abc import Sequence
from dataclasses import dataclass

from speckv.cost import CostTable, describe_clock
from speckv.traces import TraceSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What was compared on what.

    Attributes:
        target: Id of the target model.
        draft: Id of the draft model.
        dtype: Compression -> arithmetic of the target; "draft" -> the draft's.
        sampling: "greedy" or "gumbel".
        temperature: Of the recorded text; 0 where it is the greedy one, None where the recording does not say.
        traces_sha256: Hash of the trace file.
        cost: Name of the cost table.
        cost_kind: "measured" or "fitted".
        cost_check: Compression -> in a few words, how well the table's times add up to live runs.
        cost_ratio: Compression -> one draft pass over one target pass.
        train_prompts: Distinct prompts the best fixed gamma was tuned on.
        test_prompts: Distinct prompts compared on.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap and the tests.
    """

    target: str
    draft: str
    dtype: dict[str, str]
    sampling: str
    temperature: float | None
    traces_sha256: str
    cost: str
    cost_kind: str
    cost_check: dict[str, str]
    cost_ratio: dict[str, float]
    train_prompts: int
    test_prompts: int
    num_resamples: int
    seed: int

    @property
    def clock(self) -> str:
        """The cost table's name, and what a reader must know of it."""
        return f"{self.cost} ({describe_clock(self.cost_kind, self.cost_check)})"

    @property
    def text(self) -> str:
        """How the recorded text was chosen."""
        return f"{self.sampling}, temperature {self.temperature:g}" if self.temperature else self.sampling


def _temperature(traces: TraceSet) -> float | None:
    if not traces.metadata.is_sampled:
        return 0.0
    found = traces.metadata.sampling.get("temperature")
    return None if found is None else float(found)


def describe_setting(
    train: TraceSet, test: TraceSet, cost: CostTable, compressions: Sequence[str], *, num_resamples: int, seed: int
) -> Setting:
    """Gathers the facts of a comparison.

    Args:
        train: Where the best fixed gamma is tuned.
        test: Where everything is measured.
        cost: The clock.
        compressions: Of the test prompts, in the order of the tables.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap and the tests.
    """
    metadata = test.metadata
    return Setting(
        target=metadata.target_id,
        draft=metadata.draft_id,
        dtype=dict(metadata.dtype),
        sampling=str(metadata.sampling["mode"]),
        temperature=_temperature(test),
        traces_sha256=test.sha256,
        cost=cost.name,
        cost_kind=cost.kind,
        cost_check={c: cost.checks[c] for c in compressions},
        cost_ratio={c: float(cost.cost_ratio(c)) for c in compressions},
        train_prompts=len(train.prompt_ids),
        test_prompts=len(test.prompt_ids),
        num_resamples=num_resamples,
        seed=seed,
    )
