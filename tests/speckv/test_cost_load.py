# SPDX-License-Identifier: Apache-2.0
"""Cost tables under load: what lies between measured batches, what is refused, and what it does to decisions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speckv.agents.registry import TrainingData
from speckv.agents.runs.settings import CostSettings
from speckv.agents.runs.task import load_cost
from speckv.agents.survival.controllers import SurvivalSettings
from speckv.agents.survival.fit import fit_survival
from speckv.cost import ASSETS, CompiledCost, CostEntry, CostFit, CostTable, require_single_request
from speckv.errors import ConfigError, CostTableError
from speckv.evaluation.replays import tune_fixed
from speckv.replay import replay_controller
from tests.fakes_runs import toy_traces
from tests.fakes_settings import shipped
from tests.fakes_traces import compile_both, make_cost_table

NAMES = ("fp16", "nf4")


def loaded(table: CostTable, batch: int, factor: float) -> list[CostEntry]:
    """The entries of a table, each pass `factor` times as long, at another batch."""
    return [
        replace(
            entry,
            batch=batch,
            draft_s=tuple(factor * s for s in entry.draft_s),
            verify_s=tuple(factor * s for s in entry.verify_s),
            verify_context_slope_s=tuple(factor * s for s in entry.verify_context_slope_s),  # type: ignore[union-attr]
        )
        for entry in table.entries.values()
    ]


@pytest.fixture
def table() -> CostTable:
    """Batch 1 as in `make_cost_table`, batch 5 three times as long, batch 9 four times."""
    alone = make_cost_table()
    return replace(alone, loads=[*loaded(alone, 9, 4.0), *loaded(alone, 5, 3.0)])


def test_measured_batches_come_back(table: CostTable) -> None:
    assert table.batches("nf4") == (1, 5, 9)
    assert table.at_batch(1) is table
    five = table.at_batch(5)
    assert (five.name, five.batch) == ("fake@batch5", 5)
    assert five.entry("fp16").verify_pass_s([1, 5, 17], 64).tolist() == [24.0, 27.0, 36.0]


def test_between_batches_times_and_slopes_are_linear(table: CostTable) -> None:
    # Batch 2 is a quarter of the way from 1 to 5: 1.5 times batch 1. Batch 7 is halfway from 5 to 9: 3.5 times.
    assert table.at_batch(2).entry("fp16").verify_pass_s([1, 5], 64).tolist() == [12.0, 13.5]
    assert table.at_batch(7).entry("nf4").draft_pass_s([1, 5], 64).tolist() == [3.5, 7.0]
    # 1024 further tokens add 1 s at batch 1, so 1.5 s at batch 2.
    assert float(table.at_batch(2).entry("fp16").verify_pass_s(1, 1088)) == 13.5
    assert table.at_batch(2).cost_ratio("fp16") == 0.125


def test_outside_the_measured_batches(table: CostTable) -> None:
    for batch in (0, 10):
        with pytest.raises(CostTableError, match=rf"'fake' covers for fp16, batches 1 to 9, got {batch}. Calibrate"):
            table.at_batch(batch)
    with pytest.raises(CostTableError, match=r"fp16, batch 1, got 8. Calibrate with it: batches=\[1,8\]"):
        make_cost_table().at_batch(8)
    with pytest.raises(CostTableError, match="batch 5, got 6"):
        table.at_batch(5).at_batch(6)


def test_what_differs_in_more_than_the_batch_is_refused(table: CostTable) -> None:
    first, *others = table.loads
    with pytest.raises(CostTableError, match=r"loads.dtype: expected 'float16' at batch 9, .* got 'float32'"):
        replace(table, loads=[replace(first, dtype="float32"), *others])
    with pytest.raises(CostTableError, match="every batch once, got fp16 at batch 9 again"):
        replace(table, loads=[first, *table.loads])
    with pytest.raises(CostTableError, match="every batch once, got fp16 at batch 1 again"):
        replace(table, loads=[replace(first, batch=1)])


def test_a_check_at_batch_one_says_nothing_of_another(table: CostTable) -> None:
    checked = replace(table, fit={name: fit_that_is_off(0.02) for name in NAMES})
    assert checked.checks["nf4"] == "within 2 %"
    assert checked.at_batch(5).checks["nf4"] == "fitted"  # as the whole fake table is
    assert replace(checked, kind="measured").at_batch(5).checks["nf4"] == "not checked"


def test_file_round_trip(table: CostTable, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    told = replace(table, fit={"fp16": fit_that_is_off(-0.2)})
    told.save(path)
    assert json.loads(path.read_text())["schema_version"] == 3
    assert CostTable.load(path) == told
    assert load_cost(shipped(CostSettings, table=str(path), batch=5)).name == "fake@batch5"
    with pytest.raises(ConfigError, match=r"cost.batch 1 or more, got 0"):
        shipped(CostSettings, table=str(path), batch=0)


def version_1(table: CostTable) -> dict[str, Any]:
    content = table.to_dict() | {"schema_version": 1}
    del content["loads"], content["fit"]
    for entry in content["entries"].values():
        for name in ("batch", "contexts", "kernel", "draft_kernel", "draft_prompt_s"):
            del entry[name]
    return content


def test_version_2_is_read_with_every_number_as_it_was(table: CostTable) -> None:
    content = table.to_dict() | {"schema_version": 2}
    for entry in (*content["entries"].values(), *content["loads"]):
        del entry["draft_prompt_s"]
    assert content["loads"]
    assert CostTable.from_dict(content) == table


def test_version_1_is_read_with_every_number_as_it_was() -> None:
    table = make_cost_table(controller_s=0.001)
    assert CostTable.from_dict(version_1(table)) == table
    assert table.batches("fp16") == (1,)
    # What version 1 did not know is refused in it, as it always was.
    with pytest.raises(CostTableError, match="entries: expected a JSON object, got list"):
        CostTable.from_dict(version_1(table) | {"entries": []})
    content = version_1(table)
    content["entries"]["fp16"]["colour"] = "red"
    with pytest.raises(CostTableError, match="got 'colour'"):
        CostTable.from_dict(content)


def test_shipped_tables_keep_their_hash() -> None:
    # Recorded with policies and studies before tables had a second version.
    recorded = "8e804da82342878d9a4af188d5b774b4ddce725ee27dd541dfa6c7d4e7b50fa7"
    assert CostTable.load("rtx3090-paper").sha256 == recorded


def test_the_hash_is_of_the_times(table: CostTable) -> None:
    entry = table.entry("fp16")
    described = replace(table, entries={**table.entries, "fp16": replace(entry, kernel="slow: by hand")})
    assert described.sha256 == replace(table, fit={"fp16": fit_that_is_off(0.0)}).sha256 == table.sha256
    slower = replace(table, entries={**table.entries, "fp16": replace(entry, draft_s=(1.0, 2.5))})
    late = replace(table, entries={**table.entries, "fp16": replace(entry, draft_prompt_s=0.5)})
    others = (slower, late, replace(table, loads=()), table.at_batch(5))
    assert len({table.sha256, *(other.sha256 for other in others)}) == 5


def fit_that_is_off(error: float) -> CostFit:
    return CostFit.of(prompts=1, tokens=8, predicted_s=[4.0 * (1 + error)], measured_s=[4.0], spread=0.0)


@pytest.mark.parametrize(
    ("kind", "errors", "refused"),
    [
        ("measured", {}, "not checked for .*'fp16', 'nf4'"),
        ("measured", {"fp16": 0.01}, r"not checked for \['nf4'\]"),
        ("measured", {"fp16": 0.01, "nf4": 0.2}, r"off by 20 % for \['nf4'\]. Calibrate again with check=true"),
        ("measured", {"fp16": -0.2, "nf4": 0.0}, r"off by 20 % for \['fp16'\]"),
        ("fitted", {"nf4": 0.11}, r"off by 11 % for \['nf4'\]"),
        ("measured", {"fp16": 0.099, "nf4": -0.099}, ""),
        ("fitted", {}, ""),
    ],
)
def test_publication(kind: str, errors: dict[str, float], refused: str) -> None:
    table = replace(make_cost_table(kind=kind), fit={name: fit_that_is_off(e) for name, e in errors.items()})
    if not refused:
        table.require_publishable()
        return
    with pytest.raises(CostTableError, match=refused):
        table.require_publishable()


def test_every_shipped_table_says_what_it_covers() -> None:
    for path in ASSETS.glob("*.json"):
        table = CostTable.load(path)
        assert all(f"{name} in " in table.covers for name in table.compressions)
        assert set(table.checks) == set(table.compressions)


def serving_table() -> CostTable:
    """Hardware that takes 1 s for up to 64 rows and 1/64 s a row beyond, a draft pass a tenth of it.

    At batch 1 all 17 widths are flat; at batch 64 every row costs in proportion.
    """
    widths = tuple(range(1, 18))

    def entry(name: str, batch: int) -> CostEntry:
        return CostEntry(
            compression=name,
            dtype="float16",
            reference_context=64,
            draft_widths=widths,
            draft_s=tuple(0.1 * max(1.0, batch * w / 64) for w in widths),
            draft_context_slope_s=0.0,
            verify_widths=widths,
            verify_s=tuple(max(1.0, batch * w / 64) for w in widths),
            verify_context_slope_s=0.0,
            batch=batch,
        )

    entries = {name: entry(name, 1) for name in NAMES}
    return CostTable(
        name="serving", kind="fitted", machine={}, entries=entries, loads=[entry(name, 64) for name in NAMES]
    )


def test_a_loaded_machine_leaves_speculation_alone() -> None:
    traces = toy_traces(48)
    train = traces.select(split="train")
    settings = shipped(SurvivalSettings, rounds=1)
    quiet, busy = serving_table(), serving_table().at_batch(64)
    assert all(gamma > 0 for gamma in tune_fixed(train, quiet).best().values())
    assert set(tune_fixed(train, busy).best().values()) == {0}
    for table, drafts in ((quiet, True), (busy, False)):
        controller = fit_survival(settings, TrainingData(train=train, cost=table, seed=0))
        record = replay_controller(controller, *compile_both(traces.select(split="test"), table))
        assert (record.num_drafted.sum() > 0) == drafts


def test_load_reaches_the_observation_through_the_cost_ratio() -> None:
    alone = make_cost_table()
    busy = [replace(e, batch=8, verify_s=tuple(2 * s for s in e.verify_s)) for e in alone.entries.values()]
    table = replace(alone, loads=busy)
    np.testing.assert_allclose(CompiledCost(table.at_batch(8), NAMES).cost_ratio, [0.0625, 0.125])
    np.testing.assert_allclose(CompiledCost(table, NAMES).cost_ratio, [0.125, 0.25])


def test_control_inside_a_step_is_refused_at_a_batch() -> None:
    require_single_request("svip", 1)
    with pytest.raises(ConfigError, match=r"cost\.batch 1 for svip, which decides token by token, got 8"):
        require_single_request("svip", 8)


def test_a_table_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    make_cost_table().save(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert CostTable.load(path) == make_cost_table()
