# SPDX-License-Identifier: Apache-2.0
"""The benchmark of batches at toy size: what it reports, and that goodput drafts only where drafting pays."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from torch import Tensor

from benchmarks import batch_decoding as bench
from speckv.decoding import BatchEngine, RequestContext, generate_batch
from speckv.models import RaggedModel
from speckv.models.ragged import RaggedRows
from speckv.profiling.prompts import Prompt
from tests.fakes import BatchTableModel, TableModel, TableRows, as_causal, tiny_qwen
from tests.fakes_clock import FakeClock

HOW = bench.Measurement(compression="fp16", dtype="float64", context=6, widths=(1, 2, 5), repeats=1)


class TimedRows(RaggedRows):
    """Rows of a real model in which every pass takes as long."""

    def __init__(self, owner: "TimedModel") -> None:
        super().__init__(owner.model)
        self._time, self._pass_s = owner.time, owner.pass_s

    def extend(self, rows: Sequence[int], tokens: Tensor, counts: Sequence[int], *, last_only: bool = False) -> Tensor:
        self._time.now += self._pass_s
        return super().extend(rows, tokens, counts, last_only=last_only)


@dataclass(frozen=True, slots=True)
class TimedModel(RaggedModel):
    time: FakeClock
    pass_s: float

    def rows(self) -> TimedRows:
        return TimedRows(self)


@pytest.mark.parametrize("draft_s", [0.01, 0.5])
def test_a_report_holds_every_arm_on_real_models(draft_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own: what goodput and the policy draft, and so who ends when, depends on measured times."""
    hf, time = tiny_qwen(0), FakeClock()
    monkeypatch.setattr(bench, "device_clock", lambda _: time)
    target = TimedModel(as_causal(hf), time, 1.0)
    draft = TimedModel(as_causal(tiny_qwen(1, like=hf, noise=0.02)), time, draft_s)
    engine = BatchEngine(target, draft, clock=time)
    prompts = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11]]
    make_arms = bench.arms_of([1, 3], ["speckv/assets/policies/cpu-2core-ppo.speckv"], gamma_max=4)
    found = bench.run_batch(engine, prompts, 2, make_arms, HOW, 8)
    assert found["groups"] == 2  # the fifth prompt has no partner
    assert set(found["arms"]) == {"autoregressive", "fixed-1", "fixed-3", "goodput", "ppo"}
    assert found["cost_ratio"] == pytest.approx(draft_s)
    context = RequestContext(compression="fp16", cost_ratio=found["cost_ratio"])
    for arm in make_arms(bench.measure(target, draft, 2, HOW)):
        row = found["arms"][arm.name]
        assert row["prompts_with_another_text"] == 0
        # A partner changes nothing in a request's steps: who runs beside whom, and how long, follows from each alone.
        alone = [generate_batch(engine, [p], arm, context=context, max_new_tokens=8) for p in prompts[:4]]
        steps = [len(one.running) for one in alone]
        assert row["mean_running"] == pytest.approx(sum(steps) / (max(steps[:2]) + max(steps[2:])))
        assert row["tokens_per_step_and_row"] == pytest.approx(4 * 7 / sum(steps))
    plain = found["arms"]["autoregressive"]
    assert (plain["tokens_per_step_and_row"], plain["share_of_gamma_0"], plain["x_plain"]["estimate"]) == (
        1.0,
        1.0,
        1.0,
    )
    assert plain["mean_running"] == 2.0
    assert found["arms"]["fixed-3"]["tokens_per_step_and_row"] > 1.5
    json.dumps(found)


class SlowRows(TableRows):
    """A pass takes a second; each token beyond the eighth takes another half, as where a device has all it can do."""

    def __init__(self, owner: "SlowModel") -> None:
        super().__init__(owner)
        self._time, self._pass_s = owner.time, owner.pass_s

    def extend(self, rows: Sequence[int], tokens: Tensor, counts: Sequence[int], *, last_only: bool = False) -> Tensor:
        self._time.now += self._pass_s * (1.0 + max(0, sum(counts) - 8) / 2)
        return super().extend(rows, tokens, counts, last_only=last_only)


class SlowModel(BatchTableModel):
    def __init__(self, model: TableModel, time: FakeClock, pass_s: float) -> None:
        super().__init__(model)
        self.time, self.pass_s = time, pass_s

    def rows(self) -> SlowRows:
        return SlowRows(self)


def test_gamma_falls_to_zero_where_a_wide_pass_is_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    table, time = TableModel.random(1), FakeClock()
    monkeypatch.setattr(bench, "device_clock", lambda _: time)
    engine = BatchEngine(SlowModel(table, time, 1.0), SlowModel(table.perturbed(2, 0.4), time, 0.1), clock=time)
    prompts = [[i % 7] for i in range(8)]
    found = {
        batch: bench.run_batch(engine, prompts, batch, bench.arms_of([2], [], gamma_max=4), HOW, 10) for batch in (1, 8)
    }
    assert found[1]["verify_s"] == pytest.approx([1.0, 1.0, 1.0])
    assert found[8]["verify_s"] == pytest.approx([1.0, 5.0, 17.0])  # 8, 16 and 40 tokens
    assert found[1]["cost_ratio"] == pytest.approx(0.1)
    alone, together = (found[batch]["arms"] for batch in (1, 8))
    assert alone["goodput"]["mean_gamma"] > 2.0
    assert alone["goodput"]["x_plain"]["estimate"] > 1.3
    assert (together["goodput"]["mean_gamma"], together["goodput"]["share_of_gamma_0"]) == (0.0, 1.0)
    assert together["goodput"]["x_plain"]["estimate"] > 0.99 > together["fixed-2"]["x_plain"]["estimate"]


def test_tasks_take_turns() -> None:
    prompts = [Prompt(prompt_id=f"{task}{i}", task=task, text="x", split="test") for task in "ab" for i in range(2)]
    assert [p.prompt_id for p in bench.interleave(prompts)] == ["a0", "b0", "a1", "b1"]
