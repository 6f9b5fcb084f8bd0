# SPDX-License-Identifier: Apache-2.0
"""What the paper reports, from its own result files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speckv.errors import DataError
from speckv.evaluation.paper.files import numbers, read_json, read_table
from speckv.evaluation.paper.records import Records

Float64 = NDArray[np.float64]

TABLE, BREAKDOWN, FIGURES = (
    "paper_table1_policy_comparison.csv",
    "paper_table2_detailed_breakdown.csv",
    "paper_numbers.json",
)
POLICIES = ("Fixed-4", "Fixed-best", "Task-oracle", "SpecKV-fast")
"""Those of the table that the small network scores; SpecKV-accurate, a random forest, is left out."""

OVERALL = "Overall"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Tokens a step, by the reckoning of the paper.

    Attributes:
        policies: Shape [compressions + 1, policies]; the last line is over all compressions.
        breakdown: Shape [compressions, tasks, 2]; Fixed-4 and SpecKV-fast.
        improvement: SpecKV-fast over Fixed-4, minus one.
        correlation: Of predicted and logged acceptance rates on test records.
        squared_error: Mean, on test records.
        num_train: Records of the predictor whose quality is reported.
        num_test: Records that policies are scored on.
    """

    policies: Float64
    breakdown: Float64
    improvement: float
    correlation: float
    squared_error: float
    num_train: int
    num_test: int


def read_published(folder: Path, records: Records) -> Table:
    """Reads the paper's two tables and its list of figures.

    Raises:
        DataError: if a file is missing or lacks something.
    """
    table = read_table(folder, TABLE, ("compression", *POLICIES))
    wanted = [*records.compressions, OVERALL]
    detail = read_table(folder, BREAKDOWN, ("compression", "task", "Fixed-4", "SpecKV"))
    cells = list(zip(detail["compression"], detail["task"], strict=True))
    pairs = [(c, t) for c in records.compressions for t in records.tasks]
    if set(wanted) - set(table["compression"]) or set(pairs) - set(cells):
        raise DataError(f"{TABLE}, {BREAKDOWN}: expected lines for {wanted} and for each task. Fetch the files again.")
    lines = [table["compression"].index(name) for name in wanted]
    places = [cells.index(pair) for pair in pairs]
    columns = [numbers(detail, name, BREAKDOWN)[places] for name in ("Fixed-4", "SpecKV")]
    content = read_json(folder, FIGURES)

    def figure(group: str, name: str) -> float:
        value = content.get(group, {}).get(name)
        if not isinstance(value, int | float):
            raise DataError(f"{FIGURES}: expected a number {group}.{name}, got {value!r}. Fetch the file again.")
        return float(value)

    return Table(
        policies=np.column_stack([numbers(table, name, TABLE)[lines] for name in POLICIES]),
        breakdown=np.stack(columns, axis=-1).reshape(len(records.compressions), len(records.tasks), 2),
        improvement=figure("results", "overall_improvement_pct") / 100,
        correlation=figure("predictor", "fast_test_corr"),
        squared_error=figure("predictor", "fast_test_mse"),
        num_train=int(figure("dataset", "train_records")),
        num_test=int(figure("dataset", "test_records")),
    )
