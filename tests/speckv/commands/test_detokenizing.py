# SPDX-License-Identifier: Apache-2.0
"""Text returned token by token equals the text of all tokens, for every kind of decoder."""

import random
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models

from speckv.commands.detokenizing import REPLACEMENT, Detokenizer
from speckv.models.tokenizer import BYTE_OF

Decode = Callable[[list[int]], str]
LETTER_OF = {byte: letter for letter, byte in BYTE_OF.items()}
WORDS = ("<s>", "\u2581", "\u2581\u2581", "a", "\u2581a", "\u2581the", "\u2581你", "\ufffd", "\u2581.", ".")


def _decoder(vocabulary: list[str], decoder: decoders.Decoder, *, word_pieces: bool = False) -> Decode:
    ids = {word: number for number, word in enumerate(vocabulary)}
    model = models.WordPiece(vocab=ids, unk_token=vocabulary[0]) if word_pieces else models.BPE(vocab=ids, merges=[])
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<s>"])
    return lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True))


BYTES = [LETTER_OF[byte] for byte in range(256)]
FALLBACK = [f"<0x{byte:02X}>" for byte in range(256)]
DECODERS = {
    "byte level": _decoder([*BYTES, "ab", LETTER_OF[0x20] + LETTER_OF[0xF0], "<s>"], decoders.ByteLevel()),
    "byte fallback": _decoder(
        [*FALLBACK, *WORDS],
        decoders.Sequence(
            [
                decoders.Replace("\u2581", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(content=" ", left=1, right=0),
            ]
        ),
    ),
    "metaspace": _decoder([*FALLBACK, *WORDS], decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])),
    "word pieces": _decoder(["a", "##b", ".", "hello", "##lo", "<s>"], decoders.WordPiece(), word_pieces=True),
}
SIZES = {"byte level": 259, "byte fallback": 266, "metaspace": 266, "word pieces": 6}


def pieces(decode: Decode, tokens: list[int]) -> list[str]:
    detokenizer = Detokenizer(decode)
    return [*map(detokenizer.push, tokens), detokenizer.finish()]


@pytest.mark.parametrize("name", DECODERS)
def test_random_tokens(name: str) -> None:
    """Most of them are bytes that form no character."""
    decode = DECODERS[name]
    for seed in range(150):
        rng = random.Random(seed)
        tokens = [rng.randrange(SIZES[name]) for _ in range(rng.randint(1, 150))]
        assert "".join(pieces(decode, tokens)) == decode(tokens), tokens


@pytest.mark.parametrize("name", ["byte level", "byte fallback"])
@pytest.mark.parametrize(
    "text",
    ["a你b", "🙂🙂 🙂", "\ufffd\ufffd", "a\n🙂\n", "\t\r\n\x1b[31m", "e\u0301👩\u200d👩", " a  b ", "\ufffd🙂\ufffd"],
)
def test_text_in_single_bytes(name: str, text: str) -> None:
    decode = DECODERS[name]
    tokens = list(text.encode())
    assert "".join(pieces(decode, tokens)) == decode(tokens)


def test_a_character_appears_with_its_last_token() -> None:
    assert pieces(DECODERS["byte level"], list("a🙂\n".encode())) == ["a", "", "", "", "🙂", "\n", ""]


def test_bytes_to_fall_back_on_appear_when_their_run_ends() -> None:
    """A byte that is not valid would make the emoji four replacement characters."""
    word = 256 + WORDS.index("\u2581a")
    tokens = [word, *"🙂".encode(), word, *"🙂".encode(), 0xFF, word]
    expected = ["a", "", "", "", "", "🙂 a", "", "", "", "", "", REPLACEMENT * 5 + " a", ""]
    assert pieces(DECODERS["byte fallback"], [256, *tokens])[1:] == expected


def test_a_preview_changes_nothing() -> None:
    decode = DECODERS["byte fallback"]
    word = 256 + WORDS.index("\u2581the")
    detokenizer = Detokenizer(decode)
    assert detokenizer.push(word) == "the"
    assert detokenizer.preview([word, word]) == " the the"
    assert detokenizer.push(word) == " the"


@pytest.mark.parametrize("name", DECODERS)
def test_the_cost_of_a_token_does_not_grow_with_the_text(name: str) -> None:
    decoded = 0

    def decode(tokens: list[int]) -> str:
        nonlocal decoded
        decoded += len(tokens)
        return DECODERS[name](tokens)

    rng = random.Random(0)
    for pool in (range(SIZES[name]), [0xF0, 0x80] if SIZES[name] > 256 else [1, 2], [SIZES[name] - 2]):
        tokens = [rng.choice(pool) for _ in range(2000)]
        decoded = 0
        assert "".join(pieces(decode, tokens)) == DECODERS[name](tokens)
        assert decoded < 150 * len(tokens)


def test_a_vocabulary_without_the_first_ids() -> None:
    words = {1000: "a", 1001: " b"}
    assert pieces(lambda tokens: "".join(words[token] for token in tokens), [1000, 1001]) == ["a", " b", ""]
