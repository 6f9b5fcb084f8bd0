# SPDX-License-Identifier: Apache-2.0
"""The bytes of single tokens, for vocabularies of bytes and for those with bytes to fall back on."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from speckv.models.tokenizer import BYTE_OF, token_bytes

LETTER_OF = {byte: letter for letter, byte in BYTE_OF.items()}
TEXT = "né 你好 🙂\n\ttab </s> \x00 end"


def byte_level() -> PreTrainedTokenizerFast:
    """One token a byte, and a few of two and three."""
    merged = ["".join(LETTER_OF[b] for b in piece) for piece in (b" e", "你".encode()[:2])]
    words = [*BYTE_OF, *merged]
    merges = [(piece[0], piece[1]) for piece in merged]
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def byte_fallback() -> PreTrainedTokenizerFast:
    """Letters, a space that is a mark, and single bytes for all else."""
    words = [f"<0x{byte:02X}>" for byte in range(256)] + ["\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, [], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("tokenizer", [byte_level(), byte_fallback()], ids=["bytes", "fallback"])
def test_pieces_put_together_are_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer(TEXT)["input_ids"]
    pieces = token_bytes(tokenizer, tokens)
    assert b"".join(pieces[token] for token in tokens) == TEXT.encode()


def test_special_tokens_stand_for_their_names_and_unknown_ids_for_nothing() -> None:
    tokenizer = byte_level()
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert isinstance(end, int)
    assert token_bytes(tokenizer, [end, 100_000]) == {end: b"<|end|>"}


def test_every_byte_has_a_letter_of_its_own() -> None:
    assert sorted(BYTE_OF.values()) == list(range(256))
    assert (BYTE_OF["a"], BYTE_OF["\u0120"], BYTE_OF["\u010a"]) == (ord("a"), ord(" "), ord("\n"))
