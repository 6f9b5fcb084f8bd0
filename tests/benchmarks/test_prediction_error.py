# SPDX-License-Identifier: Apache-2.0
"""Replay against live on a clock that the test holds: the same text, so the error is the table's own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from torch import Tensor

from benchmarks.prediction_error import decode_live, errors
from speckv.cost import CostTable
from speckv.decoding import Engine, RequestContext, SamplingConfig
from speckv.models import CausalModel
from speckv.models.causal import CachedSequence
from speckv.profiling.prompts import Prompt
from speckv.profiling.record import Recorder
from speckv.runtime.constant import ConstantGamma
from tests.fakes import VOCAB, as_causal, tiny_qwen
from tests.fakes_clock import FakeClock, PassTime
from tests.fakes_traces import make_cost_table, make_traces

BUDGET = 24
ARMS = (ConstantGamma(0), ConstantGamma(3, name="best-fixed"))


@dataclass(frozen=True)
class Timed:
    """A real tiny model whose passes advance a clock."""

    inner: CausalModel
    clock: FakeClock
    pass_s: PassTime

    @property
    def context_limit(self) -> int:
        return self.inner.context_limit

    @property
    def vocab_size(self) -> int:
        return self.inner.vocab_size

    def sequence(self) -> CachedSequence:
        model = self

        class Watched(CachedSequence):
            def extend(self, tokens: Sequence[int] | Tensor, *, num_logits: int | None = None) -> Tensor:
                model.clock.now += model.pass_s(len(tokens), self.length)
                return super().extend(tokens, num_logits=num_logits)

        return Watched(self.inner)


@pytest.fixture(scope="module")
def models() -> tuple[CausalModel, CausalModel]:
    target = tiny_qwen(0)
    return as_causal(target), as_causal(tiny_qwen(1, like=target, noise=0.02), "draft")


def flat(table: CostTable, factor: float) -> CostTable:
    """A table without slopes, `factor` times as slow."""
    entries = {
        name: replace(
            entry,
            draft_s=tuple(factor * s for s in entry.draft_s),
            verify_s=tuple(factor * s for s in entry.verify_s),
            draft_context_slope_s=0.0,
            verify_context_slope_s=0.0,
        )
        for name, entry in table.entries.items()
    }
    return replace(table, entries=entries)


@pytest.mark.parametrize("factor", [1.0, 1.25])
def test_a_policys_error_is_its_tables(models: tuple[CausalModel, CausalModel], factor: float) -> None:
    rng = np.random.default_rng(1)
    prompts = [Prompt(prompt_id=f"p{i}", task="x", text="", split="test") for i in range(4)]
    ids = {prompt.prompt_id: rng.integers(0, VOCAB, rng.integers(3, 12)).tolist() for prompt in prompts}
    recorder = Recorder(*models, eos_token_ids=frozenset({3}), sampling=SamplingConfig(), max_new_tokens=BUDGET)
    traces = make_traces(recorder.record(prompts, list(ids.values())), max_new_tokens=BUDGET)
    clock, true = FakeClock(), flat(make_cost_table(), 1.0)
    target = Timed(models[0], clock, lambda width, _: float(true.entry("fp16").verify_pass_s(width, 64)))
    draft = Timed(models[1], clock, lambda width, _: float(true.entry("fp16").draft_pass_s(width, 64)))
    engine = Engine(target, draft, eos_token_ids=frozenset({3}), clock=clock)
    context = RequestContext(compression="fp16", cost_ratio=0.1)
    runs = decode_live(engine, ids, ARMS, context, BUDGET)
    found = errors(flat(make_cost_table(), factor), traces, ARMS, runs, BUDGET)
    assert set(found) == {"autoregressive", "best-fixed"}
    for arm in found.values():
        assert arm["prompts_with_the_recorded_text"] == 4
        assert arm["predicted_tokens"] == arm["measured_tokens"] > 0
        for name in ("error", "error_per_token", "error_same_steps"):
            assert arm[name] == pytest.approx(factor - 1)
