# SPDX-License-Identifier: Apache-2.0
"""A model's location and its tokenizer, which needs no weights."""

import hashlib
import json
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from speckv.errors import ModelError
from speckv.models.gguf import converted_folder

_MISSING_FORMAT = "speckv_dates lacks "
# Template arguments are reduced to plain data, so a function cannot be passed in place of `strftime_now`: a macro reads
# the date from a table, and reports a format that the table lacks. `trim_blocks` drops the newline at the end.
_FIXED_DATE = (
    "{%- macro strftime_now(format) -%}"
    f"{{%- if format not in speckv_dates -%}}{{{{- raise_exception('{_MISSING_FORMAT}' ~ format) -}}}}{{%- endif -%}}"
    "{{- speckv_dates[format] -}}"
    "{%- endmacro %}\n"
)


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a hub id, a folder or a GGUF file; ModelError if it is missing, gated or damaged."""
    location = locate(source)
    try:
        AutoConfig.from_pretrained(location)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(location)
    except (OSError, ValueError) as error:
        raise load_error(source, error) from error
    return tokenizer


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, *, chat_template: bool, date: datetime | None = None
) -> list[int]:
    """Token ids, by the chat template if set and present, which may print the local `date` (default: now)."""
    if chat_template and tokenizer.chat_template:
        text = _render(tokenizer, prompt, date)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(prompt)["input_ids"]
    return [int(token) for token in ids]


def template_reads_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether prompts depend on the date."""
    return bool(tokenizer.chat_template) and "strftime_now" in tokenizer.get_chat_template()


def _render(tokenizer: PreTrainedTokenizerBase, prompt: str, date: datetime | None) -> str:
    settings: dict[str, Any] = {}
    dates: dict[str, str] = {}
    if date is not None and template_reads_date(tokenizer):
        settings = {"chat_template": _FIXED_DATE + tokenizer.get_chat_template(), "speckv_dates": dates}
    turn = [{"role": "user", "content": prompt}]
    while True:
        try:
            return str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False, **settings))
        except Exception as error:  # jinja2's TemplateError; jinja2 is a dependency of transformers alone
            _, missing, date_format = str(error).partition(_MISSING_FORMAT)
            if date is None or not missing or date_format in dates:
                raise
            dates[date_format] = date.strftime(date_format)


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal if two tokenizers map words to the same ids."""
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()


def locate(source: str) -> str:
    """Folder or hub id of a model; a GGUF file is converted once. ModelError for a missing path."""
    path = Path(source).expanduser()
    if source.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"Expected a GGUF file at {path}, found none. Check the path.")
        return str(converted_folder(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"Expected a model folder with config.json at {path}, found none. Check the path.")
        return str(path)
    if path.is_absolute() or source.startswith((".", "~")):
        raise ModelError(f"Expected a model folder or GGUF file at {path}, found nothing. Check the path.")
    return source


def load_error(source: str, error: Exception) -> ModelError:
    """The error for a model or tokenizer that transformers could not load."""
    text = " ".join(str(error).split())
    if "gated" in text or "401" in text or "403" in text:
        return ModelError(
            f"{source} is gated. Accept its licence on the hub and log in with `hf auth login`, then retry."
        )
    return ModelError(
        f"{source} could not be loaded ({text[:240]}). Expected a hub id that this machine can reach, a local folder "
        "or a .gguf file. Offline? Give files: model.target=PATH model.draft=PATH"
    )


_RAW_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


def token_bytes(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int]) -> dict[int, bytes]:
    """Id -> bytes, perhaps half a character; ids outside the vocabulary are left out, special tokens give their name.

    Other vocabularies than byte-level and byte-fallback ones are decoded token by token.
    """
    ids = sorted(set(tokens) & set(tokenizer.get_vocab().values()))
    added = {number: str(token).encode() for number, token in tokenizer.added_tokens_decoder.items()}
    names = dict(zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True))
    steps = _decoding_steps(tokenizer)
    found = {}
    for number, name in names.items():
        if number in added:
            found[number] = added[number]
        elif "ByteLevel" in steps:
            found[number] = bytes(BYTE_OF[letter] for letter in name)
        elif "ByteFallback" in steps:
            raw = _RAW_BYTE.fullmatch(name)
            found[number] = bytes.fromhex(raw[1]) if raw else name.replace(_SPACE, " ").encode()
        else:
            found[number] = str(tokenizer.decode([number])).encode()
    return found


def _decoding_steps(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return set()
    whole = json.loads(backend.decoder.__getstate__())
    return {step["type"] for step in (whole, *whole.get("decoders", ()))}


def _byte_letters() -> dict[str, int]:
    """GPT-2's `bytes_to_unicode`: printable bytes are letters themselves, the others letters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + k): byte for k, byte in enumerate(others)}


BYTE_OF = _byte_letters()
"""Letter of a byte-level vocabulary -> byte."""
