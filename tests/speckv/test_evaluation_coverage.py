# SPDX-License-Identifier: Apache-2.0
"""Intervals hold the truth as often as they say, on data whose truth is known; and what would not."""

import pytest

from benchmarks import interval_coverage
from benchmarks.interval_coverage import prompt_coverage, seed_coverage

pytestmark = pytest.mark.slow


def test_paired_intervals_over_prompts_cover_and_those_over_steps_do_not() -> None:
    """400 studies of 100 prompts, nominal 95 %: three points are 2.8 sigma of the share of hits. The seed is fixed."""
    found = prompt_coverage(100, studies=400, resamples=500)
    assert 0.92 <= found.paired <= 0.98
    assert found.steps < 0.85


def test_intervals_over_prompts_and_seeds_cover_and_those_over_prompts_do_not() -> None:
    """300 studies of 20 runs on 60 prompts: 3.5 points are 2.8 sigma of the share of hits. The seed is fixed."""
    found = seed_coverage(20, 60, studies=300, resamples=300, tested=False)
    assert 0.915 <= found.hierarchical <= 0.985
    assert found.prompts_alone < found.hierarchical


def test_few_seeds_leave_the_interval_too_narrow_and_the_test_honest() -> None:
    """250 studies of 3 runs: the interval misses more than it says, the test does not: 5 % plus 4.1 = three sigma."""
    found = seed_coverage(3, 60, studies=250, resamples=400)
    assert 0.8 < found.hierarchical < 0.945
    assert found.prompts_alone < found.hierarchical
    assert found.false_claims < 0.091


def test_the_page_shows_what_the_committed_studies_gave() -> None:
    page = (interval_coverage.RESULT.parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for table in interval_coverage.tables(interval_coverage.load()):
        assert table in page
