# SPDX-License-Identifier: Apache-2.0
"""What the drafter inside llama-cpp-python refuses, warns of, or holds drafts to."""

import logging
import sys
from typing import Any

import numpy as np
import pytest

from speckv.errors import ConfigError, ModelError
from speckv.integrations.llama_cpp import LookupDraft, PolicyDrafting, draft_model
from speckv.runtime import Policy
from speckv.runtime.constant import ConstantGamma
from tests import fakes_llama_cpp
from tests.fakes_llama_cpp import FakeLlama, table
from tests.speckv.integrations.test_llama_cpp import LOGITS, NEAR, PROMPT, _library, text

__all__ = ["_library"]


def attach(**options: Any) -> PolicyDrafting:
    draft = options.pop("draft", FakeLlama(NEAR))
    drafter = draft_model(Policy.of(ConstantGamma(2)), draft, exact=options.pop("exact", False))
    good = {"logits_all": True, "flash_attn": True, "draft_model": drafter}
    drafter.attach(FakeLlama(options.pop("logits", LOGITS), **{**good, **options}))
    return drafter


def test_models_of_other_vocabularies_are_refused() -> None:
    with pytest.raises(ModelError, match="a target with 12 and a draft with 9"):
        attach(draft=FakeLlama(table(0, 9)))
    with pytest.raises(ModelError, match=r"got b'd' and b'D' for token 3"):
        attach(draft=FakeLlama(NEAR, words="abcDefghijkl"), words="abcdefghijkl")


def test_a_target_without_flash_attention_is_warned_of_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        attach(flash_attn=False)
    assert "differs from its text without" in caplog.text
    with pytest.raises(ConfigError, match="flash_attn=True"):
        attach(flash_attn=False, exact=True)


@pytest.mark.parametrize("width", [2, 3, 5, 99])
def test_an_exact_drafter_lets_no_pass_read_more_than_is_exact(width: int) -> None:
    policy = Policy.of(ConstantGamma(7))
    drafter = draft_model(policy, FakeLlama(NEAR, n_ctx=600), exact=True)
    target = FakeLlama(
        LOGITS, n_ctx=600, logits_all=True, flash_attn=True, draft_model=drafter, exact_width=width, n_batch=600
    )
    drafter.attach(target)
    assert target.n_tokens == 0
    tried = len(target.passes)
    text(target, PROMPT, 60)
    assert max(target.passes[tried + 1 :]) == min(width, 8)


def test_an_exact_drafter_refuses_a_target_that_is_exact_in_short_texts_alone() -> None:
    attach(exact=True, exact_context=100)  # has no room for a long one
    with pytest.raises(ConfigError, match="type_k=8"):
        attach(exact=True, exact_context=100, n_ctx=600)
    with pytest.raises(ConfigError, match="type_k=8"):
        attach(exact=True, exact_width=1)


def test_a_target_that_keeps_too_few_logits_is_refused() -> None:
    with pytest.raises(ConfigError, match="8 rows of logits for 64 tokens"):
        attach(logits_all=False)
    drafter = draft_model(Policy.of(ConstantGamma(2)), FakeLlama(NEAR))
    late = FakeLlama(LOGITS, n_ctx=8, n_batch=8, flash_attn=True)
    late.draft_model = drafter
    with pytest.raises(ConfigError, match="logits_all=True"):
        drafter.attach(late)


def test_models_that_cannot_forget_are_refused() -> None:
    with pytest.raises(ConfigError, match="a target with attention alone"):
        attach(recurrent=True)
    with pytest.raises(ConfigError, match="a draft with attention alone"):
        attach(draft=FakeLlama(NEAR, recurrent=True))


def test_a_target_of_another_drafter_is_refused() -> None:
    with pytest.raises(ConfigError, match="draft_model=this drafter"):
        attach(draft_model=None)


def test_one_llama_cannot_be_both() -> None:
    llama = FakeLlama(LOGITS, logits_all=True, flash_attn=True)
    llama.draft_model = drafter = draft_model(Policy.of(ConstantGamma(2)), llama)
    with pytest.raises(ConfigError, match="two Llama objects"):
        drafter.attach(llama)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens of at least 1"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"compression": "int3"}, "a compression of"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        draft_model(Policy.of(ConstantGamma(2)), FakeLlama(NEAR), **options)


def test_lookup_lengths_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 <= shortest <= longest"):
        LookupDraft(2, 3)


def test_signals_of_another_kind_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    policy = Policy.of(ConstantGamma(2), trained_on={"draft": "prompt-lookup(4,2)"})
    with caplog.at_level(logging.WARNING):
        draft_model(policy, LookupDraft())
        assert not caplog.text
        draft_model(policy, FakeLlama(NEAR))
    assert "have another meaning" in caplog.text


def test_it_is_what_the_library_wants() -> None:
    drafter = draft_model(Policy.of(ConstantGamma(2)), LookupDraft())
    assert isinstance(drafter, fakes_llama_cpp.LlamaDraftModel)
    assert drafter(np.array(PROMPT, np.intc), anything="else").dtype == np.intc


def test_without_the_library_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ConfigError, match="pip install llama-cpp-python"):
        draft_model(Policy.of(ConstantGamma(2)), LookupDraft())
