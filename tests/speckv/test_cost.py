# SPDX-License-Identifier: Apache-2.0
"""Cost tables: interpolation, the step's time, the arrays, and the file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speckv.cost import ASSETS, CompiledCost, CostEntry, CostTable, find_cost_table
from speckv.errors import CostTableError
from tests.fakes_traces import make_cost_table

SLOPE = 2.0**-10
GOOD_FIT = {
    "prompts": 2,
    "runs": 6,
    "tokens": 60,
    "predicted_s": 21.0,
    "measured_s": 20.0,
    "error": 0.05,
    "spread": 0.01,
}


@pytest.fixture
def table() -> CostTable:
    return make_cost_table()


def test_measured_widths_come_back(table: CostTable) -> None:
    assert table.entry("fp16").verify_pass_s([1, 5, 17], 64).tolist() == [8.0, 9.0, 12.0]
    assert table.entry("nf4").draft_pass_s([1, 5], 64).tolist() == [1.0, 2.0]


def test_between_and_beyond_measured_widths(table: CostTable) -> None:
    # Draft: 0.25 s a width between 1 and 5, and the same beyond the last.
    assert table.entry("fp16").draft_pass_s([3, 9], 64).tolist() == [1.5, 3.0]
    # nf4 verify: 1 s a width; 21 lies 4 beyond the last, whose time is 20.
    assert table.entry("nf4").verify_pass_s([2, 21], 64).tolist() == [5.0, 24.0]


def test_extrapolation_never_falls(table: CostTable) -> None:
    entry = replace(table.entries["fp16"], verify_s=(8.0, 9.0, 8.5))
    assert float(entry.verify_pass_s(17, 64)) == 8.5  # as measured, though lower than at 5
    assert float(entry.verify_pass_s(40, 64)) == 8.5


def test_context_adds_its_slope(table: CostTable) -> None:
    longer = table.entry("fp16").verify_pass_s(1, [0, 64, 1088])
    assert longer.tolist() == [8.0 - 64 * SLOPE, 8.0, 9.0]
    assert float(table.entry("fp16").verify_pass_s(1, 1088)) == 9.0


def test_slope_per_width_is_interpolated(table: CostTable) -> None:
    entry = replace(table.entries["fp16"], draft_context_slope_s=(0.0, 0.0078125))
    # Width 3 is halfway between 1 and 5: slope 0.00390625 over 64 further tokens, on 1.5 s.
    assert float(entry.draft_pass_s(3, 128)) == 1.5 + 64 * 0.00390625


def test_step_is_catch_up_then_single_drafts_then_verify(table: CostTable) -> None:
    # nf4 at context 64, three drafts, lag 2: draft(3) + 2 draft(1) + verify(4) = 1.5 + 2 + 7.
    assert float(table.step_seconds("nf4", 3, 2, 64)) == 10.5
    # Without drafting the lag does not matter.
    assert table.step_seconds("nf4", 0, [0, 9], 64).tolist() == [4.0, 4.0]


def test_cost_ratio(table: CostTable) -> None:
    assert table.cost_ratio("fp16") == 0.125
    assert table.cost_ratio("nf4") == 0.25


def test_width_below_one_is_refused(table: CostTable) -> None:
    with pytest.raises(CostTableError, match="at least one token, got width 0"):
        table.entry("fp16").verify_pass_s(0, 64)


def test_require_names_what_is_missing(table: CostTable) -> None:
    table.require(["fp16", "nf4"])
    with pytest.raises(CostTableError, match=r"cover \['int8'\], got only \['fp16', 'nf4'\]"):
        table.require(["fp16", "int8"])


@pytest.mark.parametrize("order", [("fp16", "nf4"), ("nf4", "fp16"), ("nf4",)])
def test_arrays_equal_the_table(table: CostTable, order: tuple[str, ...]) -> None:
    compiled = CompiledCost(table, order)
    rng = np.random.default_rng(0)
    comp = rng.integers(0, len(order), 500)
    drafted, lag = rng.integers(0, 17, 500), rng.integers(0, 700, 500)  # lags beyond the tabulated widths as well
    context = rng.integers(1, 4000, 500)
    expected = [
        float(table.step_seconds(order[c], d, x, k)) for c, d, x, k in zip(comp, drafted, lag, context, strict=True)
    ]
    np.testing.assert_allclose(compiled.step_seconds(comp, drafted, lag, context), expected, rtol=1e-13)
    plain = [float(table.entry(order[c]).verify_pass_s(1, k)) for c, k in zip(comp, context, strict=True)]
    np.testing.assert_allclose(compiled.autoregressive_s(comp, context), plain, rtol=1e-13)


def test_arrays_know_the_ratios(table: CostTable) -> None:
    compiled = CompiledCost(table, ("nf4", "fp16"))
    assert compiled.cost_ratio.tolist() == [0.25, 0.125]
    assert compiled.reference_autoregressive_s.tolist() == [4.0, 8.0]
    assert compiled.reference_draft_s.tolist() == [1.0, 1.0]


def test_arrays_need_every_compression(table: CostTable) -> None:
    with pytest.raises(CostTableError, match=r"cover \['int8'\]"):
        CompiledCost(table, ("int8",))


def test_file_round_trip(table: CostTable, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "costs.json"
    with_machine = replace(table, machine={"cpu": "toy", "threads": 2}, controller_s=0.001, notes="n", source="s")
    with_machine.save(path)
    assert CostTable.load(path) == with_machine
    assert [p.name for p in path.parent.iterdir()] == ["costs.json"]


def test_one_slope_stands_for_all_widths(table: CostTable) -> None:
    content = table.to_dict()
    content["entries"]["fp16"]["verify_context_slope_s"] = 0.001
    assert CostTable.from_dict(content).entries["fp16"].verify_context_slope_s == (0.001, 0.001, 0.001)


def _spoil(content: dict[str, Any], path: str, value: object) -> None:
    *parents, last = path.split(".")
    for name in parents:
        content = content[name]
    content[last] = value


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema_version", 4, "schema_version: expected 1 or 2 or 3, got 4"),
        ("schema_version", True, "schema_version: expected 1 or 2 or 3, got True"),
        ("entries.fp16.draft_prompt_s", -1.0, "entries.fp16.draft_prompt_s: expected 1 finite numbers of at least 0"),
        ("kind", "guessed", r"kind: expected one of \['measured', 'fitted'\], got 'guessed'"),
        ("name", 3, "name: expected text, got 3"),
        ("machine", [], "machine: expected a JSON object, got list"),
        ("controller_s", -1.0, r"controller_s: expected 1 finite numbers of at least 0, got \[-1.0\]"),
        ("entries", {}, "entries: expected at least one compression"),
        ("colour", "red", "expected only the fields .* got 'colour'"),
        ("entries.fp16.draft_width", [1], "got 'draft_width'.*Did you mean 'draft_widths'"),
        ("entries.fp16.compression", "nf4", "entries.fp16.compression: expected 'fp16', got 'nf4'"),
        ("entries.fp16.dtype", None, "entries.fp16.dtype: expected text, got None"),
        ("entries.fp16.reference_context", 1.5, "entries.fp16.reference_context: expected a whole number"),
        ("entries.fp16.reference_context", True, "entries.fp16.reference_context: expected a whole number"),
        ("entries.fp16.verify_widths", [2, 5, 17], "entries.fp16.verify_widths: expected .* the first 1"),
        ("entries.fp16.verify_widths", [1, 5, 5], "entries.fp16.verify_widths: expected at least two ascending"),
        ("entries.fp16.verify_widths", "157", "entries.fp16.verify_widths: expected at least two ascending"),
        ("entries.fp16.draft_widths", [1], "entries.fp16.draft_widths: expected at least two"),
        ("entries.fp16.draft_s", [1.0], "entries.fp16.draft_s: expected 2 finite numbers above 0"),
        ("entries.fp16.draft_s", [1.0, 0.0], "entries.fp16.draft_s: expected 2 finite numbers above 0"),
        ("entries.fp16.draft_s", [1.0, float("nan")], "entries.fp16.draft_s: expected 2 finite numbers above 0"),
        ("entries.fp16.draft_s", ["1", "2"], "entries.fp16.draft_s: expected 2 finite numbers above 0"),
        ("entries.fp16.draft_context_slope_s", -0.1, "draft_context_slope_s: expected 2 finite numbers of at least 0"),
        ("entries.fp16.draft_context_slope_s", 0.5, "draft_context_slope_s: expected less than 0.0156 s a token"),
        ("entries.fp16.spread", [0.1], "entries.fp16.spread: expected 3 finite numbers"),
        ("entries.fp16.batch", 0, "entries.fp16.batch: expected a whole number of at least 1, got 0"),
        ("entries.fp16.batch", 2, "entries: expected one batch for all"),
        ("entries.fp16.contexts", [-1], "entries.fp16.contexts: expected a whole number of at least 0, got -1"),
        ("entries.fp16.kernel", 1, "entries.fp16.kernel: expected text, got 1"),
        ("loads", "none", "loads: expected a list of entries, got 'none'"),
        ("loads", [{}], r"loads\[0\]: expected the field 'compression', got none"),
        ("fit", {"int8": GOOD_FIT}, r"cover \['int8'\]"),
        ("fit", {"fp16": {**GOOD_FIT, "error": 0.0}}, r"fit.fp16.error: expected .* = 0.050000, got 0.0"),
        ("fit", {"fp16": {**GOOD_FIT, "measured_s": 0.0}}, "fit.fp16.measured_s: expected a finite number"),
        ("fit", {"fp16": {**GOOD_FIT, "tokens": 0}}, "fit.fp16.tokens: expected a whole number of at least 1"),
    ],
)
def test_wrong_files_name_the_field(table: CostTable, tmp_path: Path, field: str, value: object, message: str) -> None:
    content = table.to_dict()
    _spoil(content, field, value)
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(content))
    with pytest.raises(CostTableError, match=f"costs.json: .*{message}"):
        CostTable.load(path)


def test_missing_field_is_named(table: CostTable) -> None:
    content = table.to_dict()
    del content["entries"]["nf4"]["verify_s"]
    with pytest.raises(CostTableError, match=r"entries.nf4: expected the field 'verify_s', got none"):
        CostTable.from_dict(content)


def test_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text('{"name": ')
    with pytest.raises(CostTableError, match="expected a JSON cost table"):
        CostTable.load(path)


def test_unknown_name_lists_the_shipped_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: CostTable) -> None:
    monkeypatch.setattr("speckv.cost.table.ASSETS", tmp_path)
    table.save(tmp_path / "cpu-2core.json")
    assert find_cost_table("cpu-2core") == tmp_path / "cpu-2core.json"
    assert CostTable.load("cpu-2core") == table
    with pytest.raises(CostTableError, match=r"\['cpu-2core'\], got 'cpu-2cores'. Did you mean 'cpu-2core'"):
        CostTable.load("cpu-2cores")


def test_shipped_tables_load() -> None:
    for path in ASSETS.glob("*.json"):
        assert CostTable.load(path.stem).name == path.stem


def test_entry_built_in_code_is_checked_too() -> None:
    with pytest.raises(CostTableError, match="verify_s: expected 2 finite numbers above 0"):
        CostEntry(
            compression="fp16",
            dtype="float16",
            reference_context=8,
            draft_widths=[1, 2],
            draft_s=[1.0, 1.0],
            draft_context_slope_s=0.0,
            verify_widths=[1, 2],
            verify_s=[1.0, -1.0],
            verify_context_slope_s=0.0,
        )
