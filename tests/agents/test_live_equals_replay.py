# SPDX-License-Identifier: Apache-2.0
"""A controller takes the same decisions on live models as on their recording, and the same tokens follow."""

import numpy as np
import pytest

from speckv.decoding import Engine, RequestContext, SamplingConfig, generate
from speckv.models import CausalModel
from speckv.profiling.prompts import Prompt
from speckv.profiling.record import Recorder
from speckv.replay import replay_controller
from speckv.runtime.policy import load_controller
from speckv.runtime.shipped import shipped_policy
from speckv.traces import TraceSequence
from speckv.types import Controller, OnlineLearner
from tests.agents.test_agents_contract import NAMES, make
from tests.fakes import VOCAB, as_causal, tiny_qwen
from tests.fakes_traces import compile_both, make_cost_table, make_traces

EOS = frozenset({3})
BUDGET = 24

Recording = tuple[SamplingConfig, list[list[int]], list[TraceSequence]]


@pytest.fixture(scope="module")
def models() -> tuple[CausalModel, CausalModel]:
    target = tiny_qwen(0)
    return as_causal(target), as_causal(tiny_qwen(1, like=target, noise=0.02), "draft")


@pytest.fixture(scope="module", params=["greedy", "gumbel"])
def recording(models: tuple[CausalModel, CausalModel], request: pytest.FixtureRequest) -> Recording:
    sampling = SamplingConfig(mode=request.param, temperature=0.9, seed=3)
    rng = np.random.default_rng(1)
    prompts = [Prompt(prompt_id=f"p{i}", task="x", text="", split="train") for i in range(3)]
    ids = [rng.integers(0, VOCAB, rng.integers(1, 20)).tolist() for _ in prompts]
    recorder = Recorder(*models, eos_token_ids=EOS, sampling=sampling, max_new_tokens=BUDGET)
    return sampling, ids, recorder.record(prompts, ids)


def compare(controller: Controller, models: tuple[CausalModel, CausalModel], recording: Recording) -> int:
    """Number of tokens drafted, after checking that live and replay agree step by step."""
    sampling, prompts, sequences = recording
    table = make_cost_table()
    context = RequestContext(compression="fp16", cost_ratio=table.cost_ratio("fp16"))
    engine = Engine(*models, eos_token_ids=EOS, sampling=sampling)
    drafted = 0
    for prompt, sequence in zip(prompts, sequences, strict=True):
        traces = make_traces([sequence], max_new_tokens=BUDGET)
        log = replay_controller(controller, *compile_both(traces), log=True).log
        assert log is not None
        run = generate(engine, prompt, controller, context=context, max_new_tokens=BUDGET, request=sequence.prompt_id)
        assert list(run.tokens) == sequence.tokens.tolist()
        outcomes = [step.outcome for step in run.steps]
        for name in ("num_drafted", "num_accepted", "num_emitted"):
            assert [getattr(o, name) for o in outcomes] == getattr(log, name).tolist(), name
        drafted += int(log.num_drafted.sum())
    return drafted


@pytest.mark.parametrize("name", NAMES)
def test_every_agent(name: str, models: tuple[CausalModel, CausalModel], recording: Recording) -> None:
    _, controller = make(name)
    if isinstance(controller, OnlineLearner):
        pytest.skip("what it learns depends on the clock")
    compare(controller, models, recording)


def test_the_shipped_policy(models: tuple[CausalModel, CausalModel], recording: Recording) -> None:
    assert compare(load_controller(shipped_policy("cpu-2core-ppo")), models, recording) > 0
