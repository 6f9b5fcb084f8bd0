# SPDX-License-Identifier: Apache-2.0
"""The drafter in the real llama-cpp-python, on real weights; skipped where either is missing."""

import inspect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speckv.errors import ConfigError, ModelError
from speckv.integrations.llama_cpp import LookupDraft, PolicyDrafting, draft_model, exact_width
from speckv.observation import SCHEMA
from speckv.runtime import Policy
from speckv.runtime.constant import ConstantGamma
from speckv.runtime.signals import signals_of_logits
from speckv.types import Controller
from tests.fakes_policies import Scheduled, StopsUnsure

llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python (the extra llama-cpp)")

pytestmark = [pytest.mark.model, pytest.mark.slow]

SMOL = "smollm2-135m-instruct-q4_1.gguf"
QWEN, QWEN_DRAFT = (f"qwen2.5-coder-{size}-instruct-q4_k_m.gguf" for size in ("1.5b", "0.5b"))
PROMPTS = (
    "Write the numbers from one to twenty in words, then again.",
    "def add(a, b):\n    return a + b\n\ndef subtract(a, b):\n",
    "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the lazy",
)
TOKENS = 48
Q8_0 = 8
"""llama.cpp's number of a cache in 8 bits."""
NEAR_TIE = 1.0
"""Of two logits; passes of other widths moved a logit by up to 0.7 where weights are K-quants."""


def load(path: Path, **options: Any) -> Any:
    settings = {"n_ctx": 512, "flash_attn": True, "n_threads": 1, "n_threads_batch": 1, "verbose": False, "seed": 1}
    return llama_cpp.Llama(str(path), **{**settings, **options})


def text(llama: Any, prompt: str, count: int = TOKENS, temperature: float = 0.0) -> list[int]:
    llama.reset()
    llama.set_seed(7)
    ids = llama.tokenize(prompt.encode())
    running = llama.generate(ids, temp=temperature, top_k=40 if temperature else 1)
    return list(itertools.islice(running, count))


class Pair:
    """A target that is given one drafter after the other, and its own texts."""

    def __init__(self, target: Path, draft: Path) -> None:
        self.draft = load(draft)
        plain = load(target)
        self.plain = {prompt: text(plain, prompt) for prompt in PROMPTS}
        self.drawn = text(plain, PROMPTS[0], temperature=1.0)
        plain.close()
        # It keeps the logits of all tokens only if it is made with a drafter or told so.
        self.target = load(target, logits_all=True, draft_model=draft_model(policy(ConstantGamma(0)), self.draft))

    def drafter(self, controller: Controller, draft: Any = None, **options: Any) -> PolicyDrafting:
        made = draft_model(policy(controller), draft or self.draft, **options)
        self.target.draft_model = made
        made.attach(self.target)
        return made


def policy(controller: Controller) -> Policy:
    return Policy.of(controller, cost_ratio={"fp16": 0.3}, fallback={"fp16": 1})


@pytest.fixture(scope="module")
def smol(weights_dir: Path) -> Pair:
    return Pair(weights_dir / SMOL, weights_dir / SMOL)


@pytest.fixture(scope="module")
def qwen(weights_dir: Path) -> Pair:
    return Pair(weights_dir / QWEN, weights_dir / QWEN_DRAFT)


@pytest.mark.parametrize("seed", range(4))
def test_the_text_is_the_targets_own_when_it_drafts_for_itself(smol: Pair, seed: int) -> None:
    schedule = Scheduled.random(seed)
    drafter = smol.drafter(schedule)
    for prompt in PROMPTS:
        assert text(smol.target, prompt) == smol.plain[prompt]
    outcomes = list(itertools.chain(*schedule.outcomes))
    assert all(outcome.num_accepted == outcome.num_drafted for outcome in outcomes)
    assert {outcome.num_drafted for outcome in outcomes} >= {0, 1, 2, 3, 4, 5, 6}
    assert drafter.totals.requests == len(PROMPTS)
    assert not drafter.policy.warnings


@pytest.mark.parametrize("seed", range(2))
def test_the_text_is_the_targets_own_with_a_draft_model(qwen: Pair, seed: int) -> None:
    schedule = Scheduled.random(seed)
    drafter = qwen.drafter(schedule, exact=True)
    for prompt in PROMPTS:
        assert text(qwen.target, prompt) == qwen.plain[prompt]
    outcomes = list(itertools.chain(*schedule.outcomes))
    assert 0 < sum(o.num_accepted for o in outcomes) < sum(o.num_drafted for o in outcomes)
    assert not drafter.policy.warnings


def test_the_text_is_the_targets_own_with_a_token_policy(smol: Pair) -> None:
    stops = StopsUnsure(0.7)
    drafter = smol.drafter(stops)
    for prompt in PROMPTS:
        assert text(smol.target, prompt) == smol.plain[prompt]
    assert len({outcome.num_drafted for outcome in itertools.chain(*stops.outcomes)}) > 2
    assert not drafter.policy.warnings


def test_without_exactness_texts_differ_at_near_ties_alone(qwen: Pair) -> None:
    qwen.drafter(Scheduled.random(1))
    for prompt in PROMPTS:
        mine, own = text(qwen.target, prompt), qwen.plain[prompt]
        place = next((i for i, (a, b) in enumerate(zip(mine, own, strict=True)) if a != b), None)
        if place is not None:
            qwen.target.reset()
            qwen.target.eval([*qwen.target.tokenize(prompt.encode()), *own[:place]])
            logits = qwen.target.scores[qwen.target.n_tokens - 1]
            assert abs(logits[mine[place]] - logits[own[place]]) < NEAR_TIE


def test_the_text_is_the_targets_own_with_a_lookup(smol: Pair) -> None:
    drafter = smol.drafter(Scheduled.random(5), LookupDraft())
    for prompt in PROMPTS:
        assert text(smol.target, prompt) == smol.plain[prompt]
    assert drafter.totals.accepted > 0


def test_drawn_texts_are_the_same_for_the_same_seed(smol: Pair) -> None:
    drafter = smol.drafter(Scheduled.random(6), temperature=1.0)
    assert text(smol.target, PROMPTS[0], temperature=1.0) == smol.drawn
    assert drafter.totals.accepted < drafter.totals.drafted


def test_the_text_begins_with_a_plain_step_and_may_stay_plain(smol: Pair) -> None:
    drafter = smol.drafter(ConstantGamma(0))
    assert text(smol.target, PROMPTS[0]) == smol.plain[PROMPTS[0]]
    assert drafter.totals.drafted == 0
    smol.drafter(Scheduled(lambda step: 0 if step < 5 else 4))
    assert text(smol.target, PROMPTS[1]) == smol.plain[PROMPTS[1]]


def test_signals_are_those_of_the_models(qwen: Pair) -> None:
    schedule = Scheduled(lambda _: 3)
    qwen.drafter(schedule)
    found = text(qwen.target, PROMPTS[1], 24)
    ids = [*qwen.target.tokenize(PROMPTS[1].encode()), *found]
    fresh = {"target": qwen.target, "draft": qwen.draft}
    rows: dict[str, Any] = {}
    for name, llama in fresh.items():
        llama.reset()
        llama.eval(ids[: -len(found)])
        newest = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
        rows[name] = np.ctypeslib.as_array(newest, shape=(llama.n_vocab(),)).copy()
    entropy, confidence, _ = signals_of_logits(rows["target"])
    columns = [SCHEMA.index("target_entropy"), SCHEMA.index("target_confidence")]
    np.testing.assert_allclose(schedule.seen[0][0][columns], [entropy, confidence], atol=1e-3)
    qwen.draft.eval(found[:1])
    row = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(qwen.draft.ctx, -1), shape=(qwen.draft.n_vocab(),))
    np.testing.assert_allclose(schedule.outcomes[0][0].draft_signals[0], signals_of_logits(row), atol=1e-3)


def test_nothing_leaks_between_completions(smol: Pair) -> None:
    def run(prompts: Sequence[str]) -> Scheduled:
        schedule = Scheduled(lambda step: [3, 0, 4, 1][step % 4])
        smol.drafter(schedule, max_new_tokens=24)
        for prompt in prompts:
            smol.target.create_completion(prompt, max_tokens=24, temperature=0.0)
        return schedule

    both = run([PROMPTS[0], PROMPTS[0], PROMPTS[2]])
    single = [run([prompt]) for prompt in (PROMPTS[0], PROMPTS[0], PROMPTS[2])]
    assert both.chosen == [one.chosen[0] for one in single]
    for mine, alone in zip(both.seen, single, strict=True):
        np.testing.assert_allclose(mine, alone.seen[0], atol=1e-6)


def test_attention_that_threads_share_is_found_out(weights_dir: Path) -> None:
    options = {"n_ctx": 1024, "n_threads": 2, "n_threads_batch": 2, "logits_all": True}
    target = load(weights_dir / SMOL, **options)
    assert exact_width(target, widest=4, contexts=(8,)) == 4
    assert exact_width(target, widest=4) == 1
    target.close()
    target = load(weights_dir / SMOL, type_k=Q8_0, type_v=Q8_0, **options)
    assert exact_width(target, widest=4) == 4
    target.close()


def test_models_that_do_not_fit_are_refused(smol: Pair, qwen: Pair, weights_dir: Path) -> None:
    with pytest.raises(ModelError, match="a target with 49152 and a draft with 151936"):
        smol.drafter(ConstantGamma(2), qwen.draft)
    for options, match in (
        ({"logits_all": True, "flash_attn": False}, "flash_attn=True"),
        ({"n_batch": 64}, "logits_all=True"),
    ):
        drafter = draft_model(policy(ConstantGamma(2)), smol.draft, exact=True)
        target = load(weights_dir / SMOL, draft_model=drafter, **options)
        with pytest.raises(ConfigError, match=match):
            drafter.attach(target)
        target.close()


def test_contexts_that_were_rounded_up_are_not_overrun(smol: Pair, weights_dir: Path) -> None:
    drafter = draft_model(policy(ConstantGamma(6)), smol.draft)
    target = load(weights_dir / SMOL, n_ctx=40, logits_all=True, draft_model=drafter)
    drafter.attach(target)
    ids = target.tokenize(PROMPTS[0].encode())
    count = 40 - len(ids)
    assert target.n_ctx() > 40
    assert text(target, PROMPTS[0], count) == smol.plain[PROMPTS[0]][:count]
    target.close()


def test_the_hook_is_the_one_that_was_built_for() -> None:
    from llama_cpp.llama_speculative import LlamaDraftModel

    assert list(inspect.signature(LlamaDraftModel.__call__).parameters) == ["self", "input_ids", "kwargs"]
    made = draft_model(policy(ConstantGamma(1)), LookupDraft())
    assert isinstance(made, LlamaDraftModel)
    assert made(np.array([1, 2, 3], np.intc)).dtype == np.intc
