# SPDX-License-Identifier: Apache-2.0
"""The end of a run on one screen."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from speckv.agents.runs.closing import GAINS_MOST, LEVEL_WITH_IT, next_steps
from speckv.evaluation import compare
from speckv.evaluation.compare import Comparison
from speckv.evaluation.results import comparison_json
from speckv.evaluation.summary import WIDTH, render_summary, verdict
from speckv.runtime.constant import ConstantGamma
from tests.fakes_traces import make_cost_table, random_traces

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def compared(number: int, prompts: int = 30) -> Comparison:
    traces = random_traces(num_prompts=prompts, seed=2)
    controllers = [ConstantGamma(1 + k % 9, name=f"controller-{k}") for k in range(number)]
    train, test = (traces.select(split=split) for split in ("train", "test"))
    return compare(train=train, test=test, cost=make_cost_table(), controllers=controllers, num_resamples=40)


@pytest.mark.parametrize("number", [0, 1, 3, 14])
def test_it_fits_a_small_terminal(number: int) -> None:
    comparison = compared(number)
    lines = render_summary(comparison).splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= WIDTH
    text = "\n".join(lines)
    assert "best fixed" in text
    assert "tok/s" in text
    assert " ".join(verdict(comparison).split()) in " ".join(text.split())
    if number == 14:
        assert "(6 more in results.txt)" in text
    whole = comparison.group("all")
    for name in comparison.entrants[:1] if number < 9 else ():
        assert f"{whole.row(name).geomean_vs_best_fixed.estimate:.3f}" in text


def test_too_few_prompts_get_no_verdict_no_interval_and_no_headroom() -> None:
    few = compared(2, prompts=7)
    assert few.setting.test_prompts == 1
    assert "1 test prompt: too few to tell" in render_summary(few)
    assert few.families == ()
    for result in few.groups:
        assert all(row.speedup_vs_best_fixed.low is None for row in result.rows)
    assert "distinguishable" not in verdict(few)
    assert json.dumps(comparison_json(few))


def test_a_share_of_hardly_any_room_is_not_given() -> None:
    traces = random_traces(num_prompts=30, seed=2)
    train, test = (traces.select(split=split) for split in ("train", "test"))
    table = make_cost_table()
    dear = replace(
        table, entries={c: replace(e, draft_s=[100.0 * s for s in e.draft_s]) for c, e in table.entries.items()}
    )
    comparison = compare(
        train=train, test=test, cost=dear, controllers=[ConstantGamma(3, name="mine")], num_resamples=10
    )
    assert {row.headroom_share for result in comparison.groups for row in result.rows} == {None}


def test_the_last_line_says_what_was_gained_and_which_command_gains_more(tmp_path: Path) -> None:
    comparison = compared(1)
    cost = SimpleNamespace(table="cpu-2core")
    shipped = SimpleNamespace(data=SimpleNamespace(traces="qwen2.5-coder-greedy"), cost=cost)
    own = SimpleNamespace(data=SimpleNamespace(traces="mine.parquet"), cost=cost)
    for settings, name, promised in (
        (shipped, "ppo", f"gains more:  speckv train agent={GAINS_MOST}"),
        (shipped, GAINS_MOST, f"use it:      speckv export {tmp_path}"),
        (own, "ppo", f"compare it:  speckv evaluate controllers={tmp_path} agents=all"),
    ):
        run: Any = SimpleNamespace(settings=settings, name=name)
        *_, gained, last = next_steps(run, comparison, tmp_path).splitlines()
        assert promised in last
        assert f"{comparison.setting.test_prompts} test prompts" in gained


def test_the_agent_that_is_recommended_is_the_best_trained_one() -> None:
    for name in ("zoo-cpu-2core.json", "zoo-rtx3090-paper.json"):
        results = json.loads((RESULTS / name).read_text(encoding="utf-8"))
        (whole,) = [g for g in results["groups"] if (g["compression"], g["task"]) == ("all", "all")]
        gained = {r["controller"]: r["geomean_speedup_vs_best_fixed"]["estimate"] for r in whole["rows"]}
        most = gained[GAINS_MOST.replace("_", "-")]
        level = {name.replace("_", "-") for name in LEVEL_WITH_IT}
        assert most > max(value for key, value in gained.items() if "ppo" in key)
        tuned = ("oracle", "clairvoyant")
        ahead = {key for key, value in gained.items() if value > most and not any(word in key for word in tuned)}
        assert ahead <= level
