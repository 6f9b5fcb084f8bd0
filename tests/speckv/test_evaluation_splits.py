# SPDX-License-Identifier: Apache-2.0
"""Recordings that cannot be compared are refused, and texts of one token are left out."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from speckv.cost import CompiledCost
from speckv.errors import TraceError
from speckv.evaluation.bootstrap import Interval
from speckv.evaluation.compare import compare, require_comparable, require_decode_steps, with_decode_steps
from speckv.evaluation.plots import figure_text, speedup_bars
from speckv.evaluation.report import save_figure
from speckv.replay import CompiledTraces, ReplayBatch
from speckv.runtime.constant import ConstantGamma
from speckv.traces import TraceSequence, TraceSet
from tests.fakes_runs import easy_or_hard
from tests.fakes_traces import make_cost_table, make_traces


def recordings(lengths: dict[tuple[str, str], int], number: int = 8) -> TraceSet:
    """Recordings at fp16 and nf4; `lengths` changes the 40 tokens of a compression's split."""

    def one(k: int, compression: str) -> TraceSequence:
        split = easy_or_hard(k, compression).split
        return easy_or_hard(k, compression, length=lengths.get((compression, split), 40))

    return make_traces([one(k, c) for c in ("fp16", "nf4") for k in range(number)], max_new_tokens=40)


def halves(traces: TraceSet) -> tuple[TraceSet, TraceSet]:
    return traces.select(split="train"), traces.select(split="test")


def test_texts_of_one_token_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    whole = recordings({})
    assert with_decode_steps(whole) is whole
    with caplog.at_level(logging.WARNING):
        kept = with_decode_steps(recordings({("nf4", "train"): 1, ("nf4", "test"): 1}))
    assert kept.compressions == ("fp16",)
    assert "Left out 8 texts of one token" in caplog.text
    assert "nothing is left at nf4" in caplog.text
    with pytest.raises(TraceError, match="got 8 texts of one"):
        with_decode_steps(recordings({(c, s): 1 for c in ("fp16", "nf4") for s in ("train", "test")}, number=4))


def test_every_tested_compression_needs_decode_steps_on_both_sides() -> None:
    require_comparable(*halves(recordings({})))
    for split in ("train", "test"):
        with pytest.raises(TraceError, match=rf"{split} prompts with decode steps .* got none at \['nf4'\]"):
            require_comparable(*halves(recordings({("nf4", split): 1})))
    train, test = halves(recordings({("nf4", "test"): 1}))
    require_comparable(train, with_decode_steps(test))  # nf4 is not tested
    with pytest.raises(TraceError, match=r"prompts to learn from .* Choose"):
        require_decode_steps(test, ("nf4",), "prompts to learn from", "Choose others.")


def test_other_depths_and_shared_prompts_are_refused() -> None:
    train, test = halves(recordings({}))
    shallow = replace(test, metadata=replace(test.metadata, gamma_max=8))
    with pytest.raises(TraceError, match="gamma_max 16 and 8"):
        require_comparable(train, shallow)
    with pytest.raises(TraceError, match="disjoint"):
        require_comparable(train, train)


@pytest.mark.parametrize("gamma_max", [0, 17, 20])
def test_a_recording_is_no_deeper_than_its_roll_outs(tmp_path: Path, gamma_max: int) -> None:
    traces = recordings({})
    wrong = replace(traces, metadata=replace(traces.metadata, gamma_max=gamma_max))
    with pytest.raises(TraceError, match=f"gamma_max 1 to 16, got {gamma_max}"):
        CompiledTraces(wrong)
    wrong.save(tmp_path / "t.parquet")
    with pytest.raises(TraceError, match=f"gamma_max from 1 to 16, got {gamma_max}"):
        TraceSet.load(tmp_path / "t.parquet")


def test_a_compression_that_is_not_registered_is_refused() -> None:
    traces = make_traces([easy_or_hard(0, "q3")], max_new_tokens=40)
    entry = replace(make_cost_table().entries["fp16"], compression="q3")
    cost = CompiledCost(replace(make_cost_table(), entries={"q3": entry}), ("q3",))
    with pytest.raises(TraceError, match=r"got recordings at \['q3'\]"):
        ReplayBatch(CompiledTraces(traces), cost, 1)


def test_a_compression_recorded_on_fewer_prompts_is_compared_on_those() -> None:
    whole = recordings({}, number=24)
    few = replace(whole, sequences=tuple(s for s in whole.sequences if s.compression == "fp16" or s.prompt_len < 21))
    train, test = halves(few)
    comparison = compare(
        train=train, test=test, cost=make_cost_table(), controllers=[ConstantGamma(3, name="three")], num_resamples=20
    )
    estimates = [row.geomean_vs_best_fixed.estimate for r in comparison.lengths for row in r.rows]
    assert all(0 < estimate < 10 for estimate in estimates)
    assert {r.group.compression for r in comparison.lengths} == {"fp16", "nf4", "all"}


@pytest.mark.figures
def test_names_in_any_script_are_drawn_without_a_warning(tmp_path: Path) -> None:
    figure = Figure()
    names = ["提示", "$x_{$", "_hidden", "عربى", "a\nb\u0007", "$\\frac{$"]
    speedup_bars(figure.add_subplot(), {name: [Interval(estimate=1.0)] for name in names}, ["代$码$"])
    figure.supxlabel(figure_text("\U0001f600 $$"))
    save_figure(figure, tmp_path / "f.png")  # warnings are errors
    assert figure_text("plain × text") == "plain × text"
    assert len({figure_text(name) for name in names}) == len(names)
