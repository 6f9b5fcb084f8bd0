# SPDX-License-Identifier: Apache-2.0
"""A controller decides for a request in a batch as for the request alone, and totals count every step once."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speckv.agents.bandits.base import Bandit
from speckv.agents.registry import TrainingData, agent_settings, make_controller
from speckv.agents.rules.gammatune import GammaTune, GammaTunePlus, GammaTuneSettings
from speckv.agents.rules.llama_cpp import LlamaCpp, LlamaCppSettings
from speckv.decoding import BatchEngine, Engine, RequestContext, SamplingConfig, generate, generate_batch
from speckv.errors import ConfigError
from speckv.observation import SCHEMA
from speckv.runtime.constant import ConstantGamma
from speckv.runtime.learned import LstmController
from speckv.runtime.policy import load_controller
from speckv.runtime.shipped import shipped_policy
from speckv.types import Controller, FloatArray, IntArray, OnlineLearner
from tests.fakes import BatchTableModel, TableModel, save_tiny, tiny_qwen
from tests.fakes_settings import shipped
from tests.fakes_traces import make_cost_table, random_traces
from tests.speckv.test_runtime_learned import random_lstm

COST_RATIO = SCHEMA.index("cost_ratio")
CONTEXT = RequestContext(compression="fp16", cost_ratio=0.25)
PROMPTS = [[0, 1], [2], [3, 3, 3], [4, 5], [1, 0, 5, 2], [5]]
BUDGETS = [30, 1, 12, 25, 17, 40]
CONTROLLERS: dict[str, Callable[[], Controller]] = {
    "constant": lambda: ConstantGamma(3),
    "policy": lambda: load_controller(shipped_policy("cpu-2core-ppo")),
    "recurrent": lambda: LstmController(random_lstm()),
    "remembers": lambda: GammaTune(shipped(GammaTuneSettings)),
    "stops": lambda: LlamaCpp(shipped(LlamaCppSettings)),
    "remembers and stops": lambda: GammaTunePlus(shipped(GammaTuneSettings)),
}
TARGET = TableModel.random(2, vocab=24)
DRAFT = TARGET.perturbed(3, 0.7)
OPTIONS: dict[str, Any] = {
    "eos_token_ids": frozenset({23}),
    "sampling": SamplingConfig(mode="gumbel", temperature=0.7, seed=4),
}


def batch_engine(**options: Any) -> BatchEngine:
    return BatchEngine(BatchTableModel(TARGET), BatchTableModel(DRAFT), **OPTIONS, **options)


@pytest.mark.parametrize("max_running", [None, 1, 2, 4])
@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_decides_in_a_batch_as_alone(name: str, max_running: int | None) -> None:
    batch = generate_batch(
        batch_engine(),
        PROMPTS,
        CONTROLLERS[name](),
        context=CONTEXT,
        max_new_tokens=BUDGETS,
        max_running=max_running,
    )
    engine, controller = Engine(TARGET, DRAFT, **OPTIONS), CONTROLLERS[name]()
    for i, (prompt, budget) in enumerate(zip(PROMPTS, BUDGETS, strict=True)):
        alone = generate(engine, prompt, controller, context=CONTEXT, max_new_tokens=budget, request=str(i))
        mine = batch.results[i]
        assert (mine.tokens, mine.finish, mine.gammas) == (alone.tokens, alone.finish, alone.gammas)
        assert [s.outcome.num_accepted for s in mine.steps] == [s.outcome.num_accepted for s in alone.steps]
    assert max(batch.running) == min(max_running or 6, 5)  # one of the six ends with its prefill
    assert sum(batch.running) == sum(len(result.steps) for result in batch.results)


def test_totals_count_every_step_once() -> None:
    now = iter(range(10_000))
    engine = batch_engine(clock=lambda: float(next(now)))
    seen: list[int] = []
    batch = generate_batch(
        engine,
        PROMPTS,
        ConstantGamma(0),
        context=CONTEXT,
        max_new_tokens=BUDGETS,
        max_running=3,
        on_step=lambda i, _: seen.append(i),
    )
    steps = len(batch.running)
    assert batch.decode_s == pytest.approx(steps + batch.controller_s)
    assert 0 < batch.controller_s < 1
    assert batch.num_tokens == sum(len(result.tokens) - 1 for result in batch.results)
    assert batch.tokens_per_s == pytest.approx(batch.num_tokens / batch.decode_s)
    for i, result in enumerate(batch.results):
        assert result.decode_s == pytest.approx(len(result.steps) + result.controller_s)
        assert seen.count(i) == 1 + len(result.steps)
    assert batch.prefill_s >= 2  # three, and others as places came free


def test_the_context_follows_the_load() -> None:
    seen: list[tuple[int, float]] = []

    class Watcher(ConstantGamma):
        def act_batch(self, observations: FloatArray) -> IntArray:
            seen.extend((len(observations), float(ratio)) for ratio in observations[:, COST_RATIO])
            return super().act_batch(observations)

    generate_batch(
        batch_engine(),
        PROMPTS,
        Watcher(1),
        context=lambda running: RequestContext(compression="fp16", cost_ratio=running / 8),
        max_new_tokens=BUDGETS,
    )
    assert {load for load, _ in seen} >= {1, 5}
    assert all(ratio == load / 8 for load, ratio in seen)


def test_a_learner_takes_requests_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def learner() -> Bandit:
        _, settings = agent_settings({"name": "ucb1"})
        data = TrainingData(train=random_traces(num_prompts=4, seed=5), cost=make_cost_table(), seed=0)
        found = make_controller("ucb1", settings, data)
        assert isinstance(found, OnlineLearner)
        return found  # type: ignore[return-value]

    options: dict[str, Any] = {"context": CONTEXT, "max_new_tokens": BUDGETS}
    with pytest.raises(ConfigError, match="Give max_running=1"):
        generate_batch(batch_engine(), PROMPTS, learner(), **options)
    bandit, learned = learner(), []
    monkeypatch.setattr(bandit, "update", lambda _, arm, *__: learned.append(int(bandit.arms[arm])))
    batch = generate_batch(batch_engine(), PROMPTS, bandit, max_running=1, **options)
    assert learned == [gamma for result in batch.results for gamma in result.gammas]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 prompts"):
        generate_batch(batch_engine(), [], ConstantGamma(1), context=CONTEXT, max_new_tokens=4)
    with pytest.raises(ConfigError, match="max_running=0"):
        generate_batch(batch_engine(), PROMPTS, ConstantGamma(1), context=CONTEXT, max_new_tokens=4, max_running=0)
    with pytest.raises(ConfigError, match="1 budgets"):
        generate_batch(batch_engine(), PROMPTS, ConstantGamma(1), context=CONTEXT, max_new_tokens=[4])


def test_a_single_request_is_a_batch_of_one() -> None:
    batch = generate_batch(batch_engine(), PROMPTS[:1], ConstantGamma(2), context=CONTEXT, max_new_tokens=20)
    assert batch.mean_gamma == 2.0
    assert np.all(np.array(batch.running) == 1)


def test_the_documented_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hf = tiny_qwen(0).float()
    save_tiny(tmp_path / "target", hf)
    save_tiny(tmp_path / "draft", hf)
    page = (Path(__file__).parents[3] / "docs" / "batches.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for role in ("target", "draft"):
        assert f'"{role}.gguf"' in code
        code = code.replace(f'"{role}.gguf"', repr(str(tmp_path / role)))
    scope: dict[str, Any] = {"texts": ["abc", "d", "ef"]}
    exec(compile(code, "docs/batches.md", "exec"), scope)
    assert len(scope["batch"].results) == 3
    # The draft is the target: three tokens a step, until the budget cuts the last one.
    assert scope["batch"].results[0].block_efficiency > 2.8
    assert capsys.readouterr().out
