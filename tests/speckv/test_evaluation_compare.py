# SPDX-License-Identifier: Apache-2.0
"""Figures of a comparison against sums done by hand."""

import numpy as np
import pytest

from speckv.agents.constants import BestFixedGamma, FixedGamma
from speckv.cost import CostEntry, CostTable
from speckv.errors import ConfigError, CostTableError, TraceError
from speckv.evaluation.compare import Comparison, compare
from speckv.evaluation.metrics import ALL
from speckv.evaluation.replays import (
    AUTOREGRESSIVE,
    BEST_FIXED,
    CLAIRVOYANT,
    REQUEST_ORACLE,
    TASK_ORACLE,
    compile_pair,
    sample_observations,
    time_decisions,
    tune_fixed,
)
from speckv.runtime.constant import ConstantGamma
from speckv.traces import TraceSet
from tests.fakes_traces import make_sequence, make_traces, random_traces

# Token 0 comes from the prefill, so decode steps start at position 1.
PERFECT = [1] * 9
HOPELESS = [0] * 9


def flat_costs(controller_s: float = 0.0) -> CostTable:
    """Draft pass 1 s, verify pass 4 s (fp16) or 2 s (nf4), whatever the width: sums can be done in the head."""
    entries = {
        name: CostEntry(
            compression=name,
            dtype="float16",
            reference_context=0,
            draft_widths=(1, 2),
            draft_s=(1.0, 1.0),
            draft_context_slope_s=0.0,
            verify_widths=(1, 2),
            verify_s=(verify, verify),
            verify_context_slope_s=0.0,
        )
        for name, verify in (("fp16", 4.0), ("nf4", 2.0))
    }
    return CostTable(name="flat", kind="fitted", machine={}, entries=entries, controller_s=controller_s)


def small_set() -> TraceSet:
    """One train and two test prompts of nine tokens at two compressions; the draft is perfect or hopeless."""
    sequences = [
        make_sequence(matches, prompt_id=name, task=task, split=split, compression=compression)
        for compression in ("fp16", "nf4")
        for name, task, split, matches in (
            ("train", "code", "train", PERFECT),
            ("good", "code", "test", PERFECT),
            ("bad", "chat", "test", HOPELESS),
        )
    ]
    return make_traces(sequences, max_new_tokens=9)


def small_comparison(cost: CostTable | None = None) -> Comparison:
    traces = small_set()
    return compare(
        train=traces.select(split="train"),
        test=traces.select(split="test"),
        cost=cost or flat_costs(),
        controllers=[ConstantGamma(3, name="three")],
        num_resamples=20,
    )


def test_figures_are_sums_divided_once() -> None:
    """Eight tokens are left to each prompt; gamma 3 at fp16.

    good: positions 1 and 5, two steps of 3 drafts, 4 tokens each: 2 * (3 + 4) = 14 s.
    bad: eight steps of one token; drafts 3, 3, 3, 3, 3, 2, 1, 0 of the tokens left less one: 18 + 8 * 4 = 50 s.
    """
    row = small_comparison().group("fp16", ALL).row("three")
    assert row.throughput == pytest.approx(16 / 64)
    assert row.speedup_vs_ar.estimate == pytest.approx(64 / 64)
    assert row.tokens_per_step == pytest.approx(16 / 10)
    assert row.drafted_per_token == pytest.approx((6 + 18) / 16)
    # Tested: 6 accepted ones, and the first token of each of the seven drafts that failed.
    assert row.acceptance_rate == pytest.approx(6 / 13)
    assert row.mean_gamma == 3.0


def test_best_fixed_is_tuned_on_train_prompts_not_on_test() -> None:
    """The train prompt is perfect: one step of 7 drafts and one token, 7 + 4 s; 8 drafts or more change nothing."""
    comparison = small_comparison()
    assert comparison.best_fixed_gammas == {"fp16": 7, "nf4": 7}
    best = comparison.group("fp16", ALL).row(BEST_FIXED)
    # good: 11 s. bad: eight steps, drafts 7, 6, 5, 4, 3, 2, 1, 0: 28 + 32 s.
    assert best.throughput == pytest.approx(16 / 71)
    assert best.speedup_vs_best_fixed.estimate == 1.0


def test_the_bound_and_the_share_of_the_room() -> None:
    """The clairvoyant takes 11 s for the good prompt and decodes the bad one plainly: 32 s."""
    result = small_comparison().group("fp16", ALL)
    bound, three = result.row(CLAIRVOYANT), result.row("three")
    assert bound.throughput == pytest.approx(16 / 43)
    assert bound.headroom_share == pytest.approx(1.0)
    assert three.headroom_share == pytest.approx((16 / 64 - 16 / 71) / (16 / 43 - 16 / 71))


def test_groups_cover_compressions_and_tasks_and_all_of_them() -> None:
    comparison = small_comparison()
    keys = {(g.group.compression, g.group.task) for g in comparison.groups}
    assert keys == {(c, t) for c in ("fp16", "nf4", ALL) for t in ("code", "chat", ALL)}
    # good alone at fp16: 14 s for 8 tokens, plain decoding 32 s.
    alone = comparison.group("fp16", "code").row("three")
    assert alone.speedup_vs_ar.estimate == pytest.approx(32 / 14)
    assert alone.speedup_vs_ar.low is None
    # nf4: 2 * (3 + 2) = 10 s and 18 + 16 = 34 s of 32; overall sums fp16 and nf4.
    overall = comparison.group(ALL, ALL).row("three")
    assert overall.throughput == pytest.approx(32 / (64 + 44))
    assert overall.geomean_vs_ar.estimate == pytest.approx(np.sqrt((64 / 64) * (32 / 44)))


def test_every_constant_is_there() -> None:
    result = small_comparison().group("nf4", ALL)
    names = [row.controller for row in result.rows]
    oracles = [TASK_ORACLE, REQUEST_ORACLE]
    assert names == [AUTOREGRESSIVE, *(f"fixed-{g}" for g in range(1, 17)), BEST_FIXED, *oracles, "three", CLAIRVOYANT]
    assert result.row("fixed-3").throughput == result.row("three").throughput


def test_oracles_play_the_best_constant_of_a_task_or_of_a_request() -> None:
    """At fp16 gamma 7 decodes the good prompt's eight tokens in one step, 7 + 4 = 11 s; the bad one wants none, 32 s.

    Code was seen in training, where the draft is perfect, so the task oracle plays 7 there; chat was not, so it plays
    the compression's best, which is 7 too: 7 + 6 + 5 + 4 + 3 + 2 + 1 = 28 drafts and eight passes, 60 s.
    """
    result = small_comparison().group("fp16", ALL)
    assert result.row(REQUEST_ORACLE).throughput == pytest.approx(16 / (11 + 32))
    assert result.row(TASK_ORACLE).throughput == pytest.approx(16 / (11 + 60))


def test_the_task_oracle_tells_tasks_apart() -> None:
    train = make_traces(
        [
            make_sequence(PERFECT, prompt_id="a", task="code", split="train", compression="fp16"),
            make_sequence(HOPELESS, prompt_id="b", task="chat", split="train", compression="fp16"),
        ],
        max_new_tokens=9,
    )
    assert tune_fixed(train, flat_costs()).best_by_task() == {("code", "fp16"): 7, ("chat", "fp16"): 0}


def test_only_a_controller_that_decides_pays_for_deciding() -> None:
    class Deciding(ConstantGamma):
        charges_decision = True

    traces, cost = small_set(), flat_costs(controller_s=0.5)
    comparison = compare(
        train=traces.select(split="train"),
        test=traces.select(split="test"),
        cost=cost,
        controllers=[ConstantGamma(3, name="constant"), Deciding(3, name="deciding")],
        num_resamples=5,
    )
    result = comparison.group("fp16", ALL)
    # Ten steps of half a second more.
    assert result.row("constant").throughput == pytest.approx(16 / 64)
    assert result.row("deciding").throughput == pytest.approx(16 / 69)


def test_the_agent_best_fixed_equals_the_baseline() -> None:
    traces, cost = random_traces(num_prompts=16, seed=5), flat_costs()
    train, test = traces.select(split="train"), traces.select(split="test")
    agent = BestFixedGamma(tune_fixed(train, cost).best())
    comparison = compare(train=train, test=test, cost=cost, controllers=[agent], num_resamples=50)
    for result in comparison.groups:
        assert result.row(agent.name).throughput == result.row(BEST_FIXED).throughput
        assert result.row(agent.name).speedup_vs_best_fixed.estimate == 1.0


def test_nobody_beats_the_clairvoyant() -> None:
    traces, cost = random_traces(num_prompts=16, seed=6), flat_costs()
    comparison = compare(
        train=traces.select(split="train"), test=traces.select(split="test"), cost=cost, controllers=[], num_resamples=5
    )
    for result in comparison.groups:
        bound = result.row(CLAIRVOYANT).throughput
        assert all(row.throughput <= bound + 1e-12 for row in result.rows)


def test_a_prompt_recorded_at_one_compression_alone_is_counted_there_alone() -> None:
    traces = small_set()
    kept = [s for s in traces.sequences if (s.prompt_id, s.compression) != ("bad", "nf4")]
    part = make_traces(kept, max_new_tokens=9)
    comparison = compare(
        train=part.select(split="train"),
        test=part.select(split="test"),
        cost=flat_costs(),
        controllers=[FixedGamma(3)],
        num_resamples=20,
    )
    assert not [g for g in comparison.groups if (g.group.compression, g.group.task) == ("nf4", "chat")]
    assert len(comparison.group("nf4", ALL).group.prompts) == 1
    assert comparison.group("nf4", ALL).row("agent fixed-3").throughput == pytest.approx(8 / 10)
    assert comparison.group(ALL, ALL).row("agent fixed-3").throughput == pytest.approx(24 / (64 + 10))


def test_what_cannot_be_compared_is_refused() -> None:
    traces, cost = small_set(), flat_costs()
    train, test = traces.select(split="train"), traces.select(split="test")
    with pytest.raises(TraceError, match="disjoint prompts"):
        compare(train=test, test=test, cost=cost, controllers=[])
    with pytest.raises(TraceError, match="train prompts with decode steps"):
        compare(train=train.select(compressions=["nf4"]), test=test, cost=cost, controllers=[])
    with pytest.raises(ConfigError, match="distinct controller names"):
        compare(train=train, test=test, cost=cost, controllers=[ConstantGamma(0)])
    with pytest.raises(ConfigError, match="distinct controller names"):
        compare(train=train, test=test, cost=cost, controllers=[FixedGamma(1), FixedGamma(1)])
    one = CostTable(name="half", kind="fitted", machine={}, entries={"fp16": cost.entries["fp16"]})
    with pytest.raises(CostTableError, match="nf4"):
        compare(train=train, test=test, cost=one, controllers=[])


def test_decisions_are_timed_one_by_one() -> None:
    observations = sample_observations(*compile_pair(small_set(), flat_costs()), count=300)
    assert observations.shape[0] == 300
    timed = time_decisions(FixedGamma(4), observations)
    assert 0 < timed.p50_us <= timed.p99_us
