# SPDX-License-Identifier: Apache-2.0
"""The study of the SpecKV paper's files: on a made-up folder everywhere, on the real one where it lies."""

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.paper.policies import (
    NEUTRAL,
    best_by_time,
    best_by_tokens,
    constant,
    credited_tokens,
    expected_tokens,
    of_choices,
    of_runs,
    predictor_inputs,
    rate_ratio,
    step_seconds,
)
from benchmarks.paper.predictor import NUM_FOLDS, fit_regressor, folds, published_split, train_test_pairs
from benchmarks.paper.released import POLICIES, Records, read_published, read_records
from benchmarks.paper.report import render_study, save_study
from benchmarks.paper.study import PaperStudy, run_study
from speckv.errors import DataError
from tests.fakes_paper import GAMMAS, write_paper

RELEASED = Path(os.environ.get("SPECKV_PAPER") or Path(__file__).parents[3] / "shared" / "data" / "speckv_paper")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_paper(tmp_path_factory.mktemp("paper"))


@pytest.fixture(scope="module")
def records(folder: Path) -> Records:
    return read_records(folder)


@pytest.fixture(scope="module")
def released() -> PaperStudy:
    if not (RELEASED / "phase2_step_results.csv").is_file():
        pytest.skip(f"needs the SpecKV paper's result files in $SPECKV_PAPER ({RELEASED})")
    return run_study(RELEASED, num_seeds=1, num_resamples=200, seed=0)


def test_every_step_finds_its_prompt(records: Records) -> None:
    steps, runs = records.steps, records.runs
    assert len(records.prompt_tasks) == 6
    assert records.gammas.tolist() == list(GAMMAS)
    assert steps.is_first.sum() == len(runs.gamma)
    emitted = np.bincount(steps.run, weights=steps.accepted + 1)
    assert emitted.tolist() == runs.tokens.tolist()
    assert (steps.task == records.prompt_tasks[steps.prompt]).all()


def test_causal_inputs_are_those_of_the_step_before(records: Records) -> None:
    leaky, causal = (predictor_inputs(records, causal=c) for c in (False, True))
    first = records.steps.is_first
    assert (causal[first, :4] == NEUTRAL).all()
    later = np.flatnonzero(~first)
    np.testing.assert_array_equal(causal[later, :4], leaky[later - 1, :4])
    np.testing.assert_array_equal(causal[:, 4:], leaky[:, 4:])


def test_the_regressor_finds_a_line() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.uniform(0, 1, (1000, 2))
    model = fit_regressor(inputs, 0.2 + 0.5 * inputs[:, 0], seed=1)
    # It stops as soon as the loss falls slowly, so not quite there.
    assert model.predict(np.array([[0.1, 0.5], [0.9, 0.5]])) == pytest.approx([0.25, 0.65], abs=0.1)
    assert model.predict(np.array([[1e3, 0.0], [-1e3, 0.0]])).max() <= 1.0
    again = fit_regressor(inputs, 0.2 + 0.5 * inputs[:, 0], seed=1)
    for ours, theirs in zip(model.parameters, again.parameters, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_published_split_takes_a_fifth_of_each_stratum() -> None:
    labels = ["a"] * 50 + ["b"] * 13
    train, test = published_split(labels, seed=42)
    assert sorted([*train, *test]) == list(range(63))
    assert len(test) == 13  # a fifth of 63, rounded up
    assert [sum(labels[i] == name for i in test) for name in "ab"] == [10, 3]  # 10.3 and 2.7


def test_folds_keep_members_together_and_strata_even() -> None:
    labels = np.repeat([0, 1], [10, 5])
    fold = folds(labels, seed=3)
    assert [np.bincount(fold[labels == k], minlength=NUM_FOLDS).tolist() for k in (0, 1)] == [[2] * 5, [1] * 5]
    tested = np.concatenate([test for _, test in train_test_pairs(fold)])
    assert sorted(tested.tolist()) == list(range(15))
    for train, test in train_test_pairs(fold):
        assert not set(train) & set(test)


def test_credited_tokens_are_what_each_policy_is_credited_with(records: Records) -> None:
    number = len(records.steps.gamma)
    expected = expected_tokens(np.tile([0.9, 0.8, 0.7], (number, 1)), records.gammas)
    # 0.9 * 2 + 1, 0.8 * 4 + 1, 0.7 * 6 + 1
    assert expected[0] == pytest.approx([2.8, 4.2, 5.2])
    scores = credited_tokens(records, expected)
    assert scores[:, POLICIES.index("Fixed-4")] == pytest.approx(4.2)
    assert scores[:, POLICIES.index("SpecKV-fast")] == pytest.approx(5.2)
    chat = records.steps.task == records.tasks.index("chat")
    assert scores[chat, POLICIES.index("Task-oracle")] == pytest.approx(2.8)
    assert scores[~chat, POLICIES.index("Task-oracle")] == pytest.approx(5.2)
    assert best_by_tokens(records).tolist() == [2, 2]


def test_constants_realise_what_their_runs_logged(records: Records) -> None:
    runs = records.runs
    realised = of_runs(records, constant(records, np.array(4)))
    four = runs.gamma == 4
    assert realised.tokens.sum() == runs.tokens[four].sum()
    assert realised.tokens_per_step == pytest.approx(runs.tokens[four].sum() / runs.steps[four].sum())
    # A verify pass of 0.05 s and 0.02 s a drafted token.
    assert step_seconds(records)[0] == pytest.approx([0.09, 0.13, 0.17])
    oracle = of_runs(records, records.oracle)
    rows = runs.gamma == records.oracle[runs.compression, runs.task]
    assert oracle.seconds.sum() == pytest.approx(runs.seconds[rows].sum())


def test_choices_are_judged_where_the_longest_draft_tells(records: Records) -> None:
    steps = records.steps
    largest = np.full(len(steps.gamma), 2)
    always, runs = of_choices(records, largest), of_runs(records, constant(records, np.array(6)))
    np.testing.assert_allclose(always.tokens, runs.tokens)
    np.testing.assert_allclose(always.seconds, runs.seconds)
    shorter = of_choices(records, np.zeros_like(largest))
    accepted = steps.accepted[steps.gamma == 6]
    assert shorter.tokens.sum() == (np.minimum(accepted, 2) + 1).sum()
    assert shorter.seconds.sum() == pytest.approx(0.09 * len(accepted))


def test_a_policy_is_as_fast_as_itself(records: Records) -> None:
    fastest = of_runs(records, constant(records, best_by_time(records)))
    counts = np.array([[2.0, 0.0, 1.0, 1.0, 1.0, 1.0]])
    interval = rate_ratio(fastest, fastest, counts)
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((1.0, 1.0, 1.0))
    for gamma in records.gammas:
        other = of_runs(records, constant(records, gamma))
        assert (other.tokens_per_s <= fastest.tokens_per_s).all()


@pytest.mark.slow
def test_the_whole_study_repeats_itself(folder: Path, tmp_path: Path) -> None:
    studies = [run_study(folder, num_seeds=2, num_resamples=50, seed=0) for _ in range(2)]
    for number, study in enumerate(studies):
        save_study(tmp_path / str(number), study)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / number).iterdir() if path.suffix != ".png"}
        for number in "01"
    )
    assert first == second
    assert set(first) == {"results.json", "results.txt"}
    assert (tmp_path / "0" / "speckv_paper.png").is_file()
    text = render_study(studies[0])
    assert "SpecKV-fast, causal, other prompts" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("phase2_step_results.csv", "acceptance_rate", "rate", "expected a column 'acceptance_rate'"),
        ("phase2_step_results.csv", "\nfp16,2,code,1,", "\nfp16,2,code,7,", "expected the steps of each line"),
        ("phase2_experiment_results.csv", "elapsed_sec", "seconds", "expected a column 'elapsed_sec'"),
        ("phase2_experiment_results.csv", "fp16,4,", "fp16,3,", "expected a run for each compression"),
        ("phase2_experiment_results.csv", "0.09", "soon", "expected numbers"),
        ("phase2_optimal_gamma.csv", "nf4,code,6", "nf4,code,5", "expected one of the gammas"),
        ("paper_table1_policy_comparison.csv", "Overall", "Sum", "expected lines for"),
        ("paper_table1_policy_comparison.csv", "Fixed-best", "Best", "expected a column 'Fixed-best'"),
        ("paper_numbers.json", "fast_test_corr", "corr", "expected a number predictor.fast_test_corr"),
        ("paper_numbers.json", "{", "", "Expected the SpecKV paper's paper_numbers.json"),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    write_paper(tmp_path)
    content = (tmp_path / name).read_text(encoding="utf-8")
    if name == "phase2_experiment_results.csv" and old == "0.09":
        lines = content.splitlines()
        cells = lines[1].split(",")
        lines[1] = ",".join([*cells[:-2], new, cells[-1]])
        content = "\n".join(lines)
    else:
        assert old in content
        content = content.replace(old, new, 1)
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_published(tmp_path, read_records(tmp_path))


def test_a_missing_file_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"results/ folder of github.com/Amorfati123/SpecKV; name yours with paper.folder"
    ):
        read_records(tmp_path / "nowhere")
    write_paper(tmp_path)
    (tmp_path / "paper_numbers.json").unlink()
    with pytest.raises(DataError, match=r"Expected the SpecKV paper's paper_numbers.json"):
        read_published(tmp_path, read_records(tmp_path))


@pytest.mark.slow
def test_the_papers_table_comes_out_again(released: PaperStudy) -> None:
    theirs, ours = released.published, released.recomputed
    assert (ours.num_train, ours.num_test) == (theirs.num_train, theirs.num_test) == (4089, 1023)
    # To the published digits here; another processor's last bits may end a fit an epoch earlier.
    np.testing.assert_allclose(ours.policies, theirs.policies, rtol=0.02)
    np.testing.assert_allclose(ours.breakdown, theirs.breakdown, rtol=0.03)
    assert ours.improvement == pytest.approx(theirs.improvement, abs=0.02)
    assert ours.correlation == pytest.approx(theirs.correlation, abs=0.01)


@pytest.mark.slow
def test_the_papers_policy_is_slower_than_a_constant_on_its_own_clock(released: PaperStudy) -> None:
    assert released.best_by_time == {"fp16": 2, "int8": 6, "nf4": 4}
    for result in released.conditions:
        predicted = result.policy.predicted
        assert predicted is not None
        assert predicted.mean > result.policy.realised.tokens_per_step
        assert result.policy.vs_best_fixed.high is not None
        assert result.policy.vs_best_fixed.high < 1.0
    leaky, causal = released.conditions[2].correlation, released.conditions[3].correlation
    assert leaky is not None
    assert causal is not None
    assert leaky.mean > causal.mean + 0.1
