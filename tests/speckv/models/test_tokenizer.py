# SPDX-License-Identifier: Apache-2.0
"""Chat templates are rendered with a given date, and otherwise as transformers renders them."""

from datetime import datetime
from pathlib import Path

import pytest
from jinja2 import TemplateError
from transformers import AutoTokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from speckv.models import encode_prompt
from speckv.models.tokenizer import template_reads_date
from tests.fakes import save_tiny, tiny_qwen

LETTERS = "abcdefghijklmnopqrstuv0N"
DATE = datetime(2000, 11, 30, 20, 0, 2)
MESSAGES = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), tiny_qwen(0), LETTERS)


@pytest.fixture
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return loaded


def encoded(tokenizer: PreTrainedTokenizerBase, text: str, date: datetime | None = DATE) -> str:
    return "".join(LETTERS[token] for token in encode_prompt(tokenizer, text, chat_template=True, date=date))


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ strftime_now('%b') }}", "Nov"),
        ("{%- set month = strftime_now(format='%b') %}{{ month|upper|first }}", "N"),
        ("{% if strftime_now is defined %}{{ strftime_now('%' ~ 'S')[0] ~ strftime_now('%b') }}{% endif %}", "0Nov"),
        ("{% macro day() %}{{ strftime_now('%b') }}{% endmacro %}{{ day() }}", "Nov"),
        ("{{ strftime_now('%m') | int is odd }}", "rue"),  # letters outside of the vocabulary become "a"
    ],
)
def test_templates_print_the_given_date(tokenizer: PreTrainedTokenizerBase, template: str, text: str) -> None:
    tokenizer.chat_template = template + MESSAGES
    assert template_reads_date(tokenizer)
    assert encoded(tokenizer, "bcd").replace("a", "") == text.replace("a", "") + "bcd"
    assert encoded(tokenizer, "bcd", datetime(2000, 2, 1)) != encoded(tokenizer, "bcd")


@pytest.mark.parametrize("begin", ["", "\n", "\n\n", "  ", "  {% set x = 1 %}", "\n  {%- set x = 1 %}\n", "{# x #}\n"])
def test_a_given_date_changes_nothing_else(
    tokenizer: PreTrainedTokenizerBase, begin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        @staticmethod
        def now() -> datetime:
            return DATE

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    tokenizer.chat_template = begin + "{{ strftime_now('%b') }}" + MESSAGES
    rendered = []

    def tokenize(text: str, **_: object) -> dict[str, list[int]]:
        rendered.append(text)
        return {"input_ids": []}

    monkeypatch.setattr(type(tokenizer), "__call__", lambda _, text, **settings: tokenize(text, **settings))
    for date in (None, DATE):
        encode_prompt(tokenizer, "bcd", chat_template=True, date=date)
    assert rendered[0] == rendered[1]
    assert rendered[0].endswith("Novbcd")


def test_templates_without_a_date(tokenizer: PreTrainedTokenizerBase) -> None:
    assert not template_reads_date(tokenizer)
    assert encoded(tokenizer, "bcd") == "bcd"
    tokenizer.chat_template = MESSAGES
    assert not template_reads_date(tokenizer)
    assert encoded(tokenizer, "bcd") == encoded(tokenizer, "bcd", None) == "bcd"


def test_errors_of_a_template_are_kept(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ strftime_now('%b') }}{{ raise_exception('only one turn') }}"
    with pytest.raises(TemplateError, match="only one turn"):
        encoded(tokenizer, "bcd")
