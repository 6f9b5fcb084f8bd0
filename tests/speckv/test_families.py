# SPDX-License-Identifier: Apache-2.0
"""Families of models: greedy text equals `generate` wherever it is decoded or recorded, or the model is refused."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from speckv.decoding import BatchEngine, Engine, SamplingConfig
from speckv.errors import ModelError
from speckv.integrations.transformers import control, custom_generate
from speckv.integrations.transformers.models import as_is
from speckv.models import RaggedModel
from speckv.models.pair import causal_model, first_layers
from speckv.profiling.prompts import Prompt
from speckv.profiling.record import Recorder
from speckv.runtime import Policy
from tests.fakes import VOCAB
from tests.fakes_families import FAMILIES, RECURRENT, family_pair, full_text, plain_text
from tests.fakes_policies import Scheduled

NEW = 32
LENGTHS = (5, 30, 12, 22)
"""Of prompts: shorter and longer than the window of 16."""

Pair = tuple[Any, Any]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def pair(family: str) -> Pair:
    return family_pair(FAMILIES[family])


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return [torch.randint(VOCAB, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in LENGTHS]


@pytest.fixture(scope="module")
def texts(pair: Pair, prompts: list[list[int]]) -> list[list[int]]:
    return [plain_text(pair[0], prompt, NEW) for prompt in prompts]


def policy(seed: int) -> Policy:
    return Policy.of(Scheduled.random(seed), learns=True, cost_ratio={"fp16": 0.3})


def decoded(engine: Engine, prompt: list[int], choose: Callable[[], int]) -> list[int]:
    engine.start(prompt, max_new_tokens=NEW)
    while engine.finish is None:
        engine.step(choose())
    return engine.tokens


def test_the_engine(pair: Pair, prompts: list[list[int]], texts: list[list[int]]) -> None:
    target, draft = (as_is(model) for model in pair)
    rng, accepted = random.Random(0), 0
    engine = Engine(target, draft)
    for prompt, text in zip(prompts, texts, strict=True):
        engine.start(prompt, max_new_tokens=NEW)
        while engine.finish is None:
            accepted += engine.step(rng.randrange(9)).outcome.num_accepted
        assert engine.tokens == text
    assert accepted > 0


def test_a_draft_of_the_first_layers(family: str, prompts: list[list[int]], texts: list[list[int]]) -> None:
    target = causal_model(
        family_pair(FAMILIES[family])[0],
        name=family,
        compression="fp16",
        dtype=torch.float64,
        device=torch.device("cpu"),
    )
    for layers in (1, 0):
        assert decoded(Engine(target, first_layers(target, layers)), prompts[1], lambda: 3) == texts[1]


def test_custom_generate(pair: Pair, prompts: list[list[int]], texts: list[list[int]]) -> None:
    target, draft = pair
    for seed, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        ids = torch.tensor([prompt])
        found = target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            custom_generate=custom_generate,
            draft_model=draft,
            policy=policy(seed),
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
        )
        assert found[0, len(prompt) :].tolist() == text


def test_control(pair: Pair, prompts: list[list[int]], texts: list[list[int]]) -> None:
    target, draft = pair
    for seed, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
        with control(target, draft, policy(seed)):
            found = target.generate(ids, attention_mask=torch.ones_like(ids), assistant_model=draft, **options)
        assert found[0, len(prompt) :].tolist() == text


def test_a_batch(pair: Pair, prompts: list[list[int]], texts: list[list[int]]) -> None:
    target, draft = (RaggedModel(as_is(model)) for model in pair)
    engine, rng = BatchEngine(target, draft), random.Random(1)
    steps = engine.start(prompts[:3], max_new_tokens=NEW)
    found = {row.number: row for row in engine.running}
    engine.step([rng.randrange(9) for _ in engine.running])
    engine.admit(prompts[3:], max_new_tokens=NEW)
    found |= {row.number: row for row in engine.running}
    while engine.running:
        engine.step([rng.randrange(9) for _ in engine.running])
    assert len(steps) == 3
    assert [found[i].tokens for i in range(4)] == texts


def test_a_recording(pair: Pair, prompts: list[list[int]], texts: list[list[int]]) -> None:
    target, draft = pair
    recorder = Recorder(
        as_is(target), as_is(draft), eos_token_ids=frozenset(), sampling=SamplingConfig(), max_new_tokens=NEW
    )
    named = [Prompt(prompt_id=str(i), task="t", text="x", split="train") for i in range(len(prompts))]
    for sequence, prompt, text in zip(recorder.record(named, prompts), prompts, texts, strict=True):
        assert sequence.tokens.tolist() == text
        for position in range(1, NEW, 6):
            drafted, signals = sequence.draft_from(position, 8)
            proposed = full_text(draft, prompt + text[:position], len(drafted))
            assert drafted.tolist() == proposed
            scores = draft(torch.tensor([prompt + text[:position]]), use_cache=False).logits[0, -1].float().softmax(-1)
            np.testing.assert_allclose(signals[0, 1], scores.max(), rtol=2e-3)


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_are_refused_before_the_first_token(name: str) -> None:
    torch.manual_seed(0)
    model = RECURRENT[name]().eval()
    plain = family_pair(FAMILIES["llama"])[0]
    ids = torch.tensor([[1, 2, 3]])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    known = as_is(model)

    def recording(target: Any, draft: Any) -> object:
        recorder = Recorder(
            as_is(target), as_is(draft), eos_token_ids=frozenset(), sampling=SamplingConfig(), max_new_tokens=4
        )
        return recorder.record([Prompt(prompt_id="0", task="t", text="x", split="train")], [[1, 2, 3]])

    def controlled(target: Any, draft: Any) -> object:
        with control(target, draft, policy(0)):
            return target.generate(ids, assistant_model=draft, **options)

    def generated(target: Any, draft: Any) -> object:
        return target.generate(ids, custom_generate=custom_generate, draft_model=draft, policy=policy(0), **options)

    entries: list[Callable[[], object]] = [
        lambda: Engine(known, None).start([1, 2, 3], max_new_tokens=4),
        lambda: RaggedModel(known).rows(),
        lambda: causal_model(
            model, name=name, compression="fp16", dtype=torch.float32, device=torch.device("cpu"), static_cache=False
        ),
    ]
    entries += [lambda call=call: call(model, plain) for call in (recording, controlled, generated)]  # type: ignore[misc]
    entries += [lambda call=call: call(plain, model) for call in (recording, controlled, generated)]  # type: ignore[misc]
    for entry in entries:
        with pytest.raises(ModelError, match=r"keys and values of tokens.*keeps LinearAttentionLayer"):
            entry()
