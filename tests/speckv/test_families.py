# SPDX-License-Identifier: Apache-2.0
"""Families of models: greedy text equals `generate` wherever it is decoded or recorded, or the model is refused."""

from typing import Any

import numpy as np
import pytest
import torch

from speckv.decoding import Engine
from speckv.errors import ModelError
from speckv.integrations.transformers.models import as_is
from speckv.models import RaggedModel
from speckv.models.pair import causal_model, first_layers
from tests.fakes_families import (
    FAMILIES,
    RECURRENT,
    WAYS,
    family_pair,
    full_text,
    plain_text,
    random_prompt,
    recorded,
)

NEW = 16
PROMPTS = [random_prompt(length) for length in (5, 30, 14)]
"""Shorter and longer than the window of 16, which the texts cross."""

Pair = tuple[Any, Any]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def pair(family: str) -> Pair:
    return family_pair(FAMILIES[family])


@pytest.fixture(scope="module")
def texts(pair: Pair) -> list[list[int]]:
    return [plain_text(pair[0], prompt, NEW) for prompt in PROMPTS]


@pytest.mark.parametrize("way", WAYS)
def test_texts_are_those_of_generate(way: str, pair: Pair, texts: list[list[int]]) -> None:
    assert WAYS[way](*pair, PROMPTS, NEW, 0) == texts


def test_drafts_are_accepted(pair: Pair) -> None:
    engine, accepted = Engine(as_is(pair[0]), as_is(pair[1])), 0
    engine.start(PROMPTS[0], max_new_tokens=NEW)
    while engine.finish is None:
        accepted += engine.step(4).outcome.num_accepted
    assert accepted > 0


def test_a_draft_of_the_first_layers(family: str, pair: Pair, texts: list[list[int]]) -> None:
    options = {"compression": "fp16", "dtype": torch.float64, "device": torch.device("cpu"), "static_cache": False}
    target = causal_model(pair[0], name=family, **options)  # type: ignore[arg-type]
    for layers in (1, 0):
        engine = Engine(target, first_layers(target, layers))
        engine.start(PROMPTS[1], max_new_tokens=NEW)
        while engine.finish is None:
            engine.step(3)
        assert engine.tokens == texts[1]


def test_recorded_proposals_are_those_of_the_draft_alone(pair: Pair, texts: list[list[int]]) -> None:
    draft = pair[1]
    for sequence, prompt, text in zip(recorded(*pair, PROMPTS, NEW), PROMPTS, texts, strict=True):
        for position in (1, 9):
            drafted, signals = sequence.draft_from(position, 6)
            before = prompt + text[:position]
            assert drafted.tolist() == full_text(draft, before, 6)
            scores = draft(torch.tensor([before]), use_cache=False).logits[0, -1].float().softmax(-1)
            np.testing.assert_allclose(signals[0, 1], scores.max(), rtol=2e-3)


@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_are_refused_before_the_first_token(name: str, way: str, role: str) -> None:
    torch.manual_seed(0)
    models = [RECURRENT[name]().eval(), family_pair(FAMILIES["llama"])[0]]
    target, draft = models if role == "target" else models[::-1]
    with pytest.raises(ModelError, match=r"keys and values of tokens.*keeps LinearAttentionLayer"):
        WAYS[way](target, draft, PROMPTS, NEW, 0)


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_are_refused_when_a_model_is_loaded(name: str) -> None:
    torch.manual_seed(0)
    model = RECURRENT[name]().eval()
    with pytest.raises(ModelError, match="LinearAttentionLayer"):
        causal_model(model, name=name, compression="fp16", dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(ModelError, match="LinearAttentionLayer"):
        RaggedModel(as_is(model)).rows()
