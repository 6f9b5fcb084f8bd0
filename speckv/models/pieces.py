# SPDX-License-Identifier: Apache-2.0
"""The bytes that single tokens stand for: a token may hold half a character, so text alone will not do."""

import json
import re
from collections.abc import Iterable

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

_RAW_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


def token_bytes(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int]) -> dict[int, bytes]:
    """Looks tokens up.

    Args:
        tokenizer: With a byte-level vocabulary, or one of words with single bytes to fall back on; from any other each
            token is decoded alone.
        tokens: Ids; those that the vocabulary does not hold are left out.

    Returns:
        Id -> bytes. Special tokens stand for their names.
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
    """Names of what turns tokens into text, in whatever nesting."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return set()
    whole = json.loads(backend.decoder.__getstate__())
    return {step["type"] for step in (whole, *whole.get("decoders", ()))}


def _byte_letters() -> dict[str, int]:
    """The alphabet of byte-level vocabularies: printable bytes stand for themselves, the others for letters from 256.

    Source:
        GPT-2's `bytes_to_unicode`, which all of them took over.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + k): byte for k, byte in enumerate(others)}


BYTE_OF = _byte_letters()
"""Letter of a byte-level vocabulary -> byte."""
