# SPDX-License-Identifier: Apache-2.0
"""What may be said of controllers: words, families, ranks."""

from collections.abc import Mapping

import numpy as np
import pytest

from benchmarks.interval_coverage import sums_of, whole_group
from speckv.evaluation.entrants import Entrant
from speckv.evaluation.significance import AHEAD, BEHIND, EQUAL, VS_BEST_FIXED, VS_FIRST, Family, holm, paired_families

PROMPTS = 30


def field(*, seed: int = 0) -> tuple[Entrant, list[Entrant]]:
    """A baseline; one controller a tenth faster on each prompt, one slower, one the same but for noise."""
    rng = np.random.default_rng(seed)
    base = rng.lognormal(0.0, 0.6, (PROMPTS, 2)) * [10.0, 1.0]
    noise = rng.lognormal(0.0, 0.05, (4, PROMPTS, 2))
    factors = {"fast": 0.9, "slow": 1.15, "same": 1.0}
    made = [Entrant.single(sums_of(n, base * f * noise[k]), 1) for k, (n, f) in enumerate(factors.items())]
    return Entrant.single(sums_of("best-fixed", base * noise[3]), 1), made


def judged(fixed: Entrant, entrants: list[Entrant], columns: int = 2) -> Mapping[str, Family]:
    families = paired_families(entrants, fixed, [whole_group(PROMPTS, columns)], num_resamples=1000, seed=0)
    return {family.question: family for family in families}


def test_words_say_who_is_ahead_of_the_best_fixed_gamma() -> None:
    family = judged(*field())[VS_BEST_FIXED]
    assert {v.controller: v.outcome for v in family.pairs} == {"fast": AHEAD, "slow": BEHIND, "same": EQUAL}
    assert (family.against, family.num_comparisons) == ("best-fixed", 3)
    by_name = {v.controller: v for v in family.pairs}
    assert by_name["fast"].speedup == pytest.approx(1 / 0.9, rel=0.03)
    assert by_name["slow"].speedup == pytest.approx(1 / 1.15, rel=0.03)
    adjusted = holm(np.array([v.p_value for v in family.pairs]))
    assert [v.p_holm for v in family.pairs] == adjusted.tolist()


def test_the_first_ranked_is_held_to_every_pair() -> None:
    fixed, entrants = field()
    family = judged(fixed, entrants)[VS_FIRST]
    assert (family.against, family.num_comparisons) == ("fast", 3)
    assert {v.controller: v.outcome for v in family.pairs} == {"slow": BEHIND, "same": BEHIND}
    # Each speed-up is over the first-ranked one, whichever comes first in the table.
    assert all(v.speedup < 1 for v in judged(fixed, entrants[::-1])[VS_FIRST].pairs)


def test_two_that_decide_alike_are_not_told_apart() -> None:
    fixed, (fast, *_) = field()
    twin = Entrant.single(sums_of("twin", fast.sums.seconds * (1 + 1e-15)), 1)
    (verdict,) = judged(fixed, [fast, twin])[VS_FIRST].pairs
    assert (verdict.p_value, verdict.outcome) == (1.0, EQUAL)


def test_compressions_weigh_alike() -> None:
    """Faster by a tenth where all is slow, slower by a fifth where all is fast: the sum of seconds would say ahead."""
    rng = np.random.default_rng(1)
    base = rng.lognormal(0.0, 0.3, (PROMPTS, 2)) * [100.0, 1.0]
    fixed = Entrant.single(sums_of("best-fixed", base), 1)
    mixed = Entrant.single(sums_of("mixed", base * [0.9, 1.25]), 1)
    (verdict,) = judged(fixed, [mixed])[VS_BEST_FIXED].pairs
    assert verdict.speedup == pytest.approx(np.sqrt(1 / 0.9 * 1 / 1.25))
    assert verdict.outcome == BEHIND


def test_there_is_nobody_to_rank_alone_and_nothing_to_judge_without_controllers() -> None:
    fixed, entrants = field()
    assert set(judged(fixed, entrants[:1])) == {VS_BEST_FIXED}
    assert judged(fixed, []) == {}


def test_many_controllers_get_flips_enough_for_holms_first_step() -> None:
    """16 contestants are 120 pairs: the least p-value, 1 / 4801, times 120 is 0.025."""
    fixed, (fast, *_) = field()
    rng = np.random.default_rng(2)
    many = [Entrant.single(sums_of(f"c{k}", fast.sums.seconds * rng.uniform(1.2, 1.3)), 1) for k in range(14)]
    families = paired_families([fast, *many], fixed, [whole_group(PROMPTS, 2)], num_resamples=10, seed=0)
    assert {f.num_flips for f in families} == {4800}
    (first,) = [f for f in families if f.question == VS_FIRST]
    assert first.num_comparisons == 105
    assert {v.outcome for v in first.pairs} == {BEHIND}


def test_runs_that_disagree_are_not_ahead() -> None:
    """Three runs, faster by 25, 0 and -9 %: over the prompts alone their mean is ahead beyond doubt."""
    fixed, _ = field()
    runs = [sums_of(f"run{k}", fixed.sums.seconds * factor) for k, factor in enumerate((0.75, 0.95, 1.1))]
    together = Entrant.of("agent", runs, np.zeros((1, 3), np.int64))
    pooled = Entrant.single(together.sums, 1)
    (seen,) = judged(fixed, [together])[VS_BEST_FIXED].pairs
    (blind,) = judged(fixed, [pooled])[VS_BEST_FIXED].pairs
    assert seen.speedup == pytest.approx(blind.speedup)
    assert blind.outcome == AHEAD
    assert seen.outcome == EQUAL
