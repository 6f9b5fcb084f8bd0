# SPDX-License-Identifier: Apache-2.0
"""Learning curves read back from a run's rows: what they say, and what is left out or refused."""

import csv
from pathlib import Path

import pytest

from speckv.agents.runs.run_folder import EVAL_COLUMNS, RunFolder
from speckv.errors import CheckpointError
from speckv.evaluation.curves import Curve, read_curve
from speckv.evaluation.metrics import ALL
from speckv.evaluation.replays import FixedSweep, tune_fixed
from tests.fakes_report import COST, splits
from tests.fakes_traces import make_sequence, make_traces

pytestmark = pytest.mark.usefixtures("few_prompts")


def curve_of(path: Path, sweep: FixedSweep, num_resamples: int = 20) -> Curve:
    fixed = sweep.combine(sweep.best())
    return read_curve(path, sweep.grid, fixed, part=True, num_resamples=num_resamples)


def write_evaluations(folder: Path, seconds: dict[int, dict[tuple[str, str], float]]) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / "eval.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(EVAL_COLUMNS)
        for step, values in seconds.items():
            for (prompt, compression), value in values.items():
                writer.writerow([step, prompt, "code", compression, 10, value, 5, 5, 5, 5])
    return folder / "eval.csv"


def test_a_curve_is_the_best_fixed_gammas_time_over_the_runs_own(tmp_path: Path) -> None:
    train, _ = splits()
    sweep = tune_fixed(train, COST)
    fixed = sweep.combine(sweep.best()).seconds
    prompts = sweep.grid.prompt_ids[:3]
    own = {
        step: {
            (prompt, compression): fixed[row, column] * factor
            for row, prompt in enumerate(prompts)
            for column, (compression, factor) in enumerate(zip(sweep.grid.compressions, factors, strict=True))
        }
        for step, factors in ((400, (1.0, 0.5)), (0, (2.0, 2.0)))
    }
    path = write_evaluations(tmp_path / "run", own)
    curve = curve_of(path, sweep)
    assert (curve.num_prompts, [point.step for point in curve.points]) == (3, [0, 400])
    first, last = (point.over_best_fixed for point in curve.points)
    assert [first[c].estimate for c in sweep.grid.compressions] == pytest.approx([0.5, 0.5])
    assert [last[c].estimate for c in sweep.grid.compressions] == pytest.approx([1.0, 2.0])
    assert last[ALL].estimate == pytest.approx(2.0**0.5)
    # Every prompt has the same ratio, so no resample has another.
    assert [last[ALL].low, last[ALL].high] == pytest.approx([2**0.5, 2**0.5])
    assert [point.mean for point in curve.points] == [first[ALL].estimate, last[ALL].estimate]
    assert [point.drafted_per_step for point in curve.points] == [1.0, 1.0]
    assert [p.mean for p in curve_of(path, sweep, num_resamples=0).points] == [p.mean for p in curve.points]
    assert curve_of(path, sweep, num_resamples=0).points[0].over_best_fixed[ALL].low is None


def test_an_evaluation_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    sweep = tune_fixed(splits()[0], COST)
    pairs = {(prompt, c): 2.0 for prompt in sweep.grid.prompt_ids[:2] for c in sweep.grid.compressions}
    path = write_evaluations(tmp_path / "run", {0: pairs, 400: pairs})
    text = path.read_text(encoding="utf-8")
    header = text.index("\n") + 1
    for end in range(header, len(text)):
        path.write_text(text[:end], encoding="utf-8")
        whole = text[:end].count("\n") - 1
        # The first evaluation names the prompts, so half of it is whole in its own eyes; the second never is.
        assert [point.step for point in curve_of(path, sweep).points] == ([0] if whole else [])
        fixed = sweep.combine(sweep.best())
        assert read_curve(path, sweep.grid, fixed).points == ()  # where all prompts are expected
    path.write_text(text[: header - 3], encoding="utf-8")
    assert curve_of(path, sweep).points == ()


def test_evaluations_of_other_prompts_or_no_numbers_are_refused(tmp_path: Path) -> None:
    sweep = tune_fixed(splits()[0], COST)
    other = write_evaluations(tmp_path / "run", {step: {("elsewhere", "fp16"): 1.0} for step in (0, 1)})
    for text, match in (
        (other.read_text(encoding="utf-8"), "prompts of the train split"),
        ("step,prompt_id\n1,p\n", "compression"),
        ("step,prompt_id,compression,seconds,steps,drafted\n1,p,fp16,fast,1,1\n", "expected numbers"),
        ("step,prompt_id,compression,seconds,steps,drafted\n1,p,fp16,1\n", "expected numbers"),
    ):
        other.write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match=match):
            curve_of(other, sweep)
    with pytest.raises(CheckpointError, match="a run's evaluations at"):
        curve_of(tmp_path / "none.csv", sweep)


def test_ids_may_hold_line_ends_commas_and_quotes(tmp_path: Path) -> None:
    names = ["a\nb", 'c,"d', "e\rf", "g\u2028h", "i\r\nj\n"]
    traces = make_traces([make_sequence([1, 0] * 4, prompt_id=name) for name in names], max_new_tokens=8)
    sweep = tune_fixed(traces, COST)
    folder = RunFolder(tmp_path)
    for step in (0, 400, 800):
        folder.append_evaluation(step, sweep.grid, sweep.sums[1])
    folder.drop_evaluations_after(400)
    fixed = sweep.combine(sweep.best())
    curve = read_curve(tmp_path / "eval.csv", sweep.grid, fixed)
    assert [point.step for point in curve.points] == [0, 400]
    text = (tmp_path / "eval.csv").read_bytes()
    for end in range(text.index(b"\n") + 1, len(text)):
        (tmp_path / "eval.csv").write_bytes(text[:end])
        assert len(read_curve(tmp_path / "eval.csv", sweep.grid, fixed).points) < 2
