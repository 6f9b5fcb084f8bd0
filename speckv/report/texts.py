# SPDX-License-Identifier: Apache-2.0
"""Texts of tokens: the bytes of each token, and the text that each one adds."""

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speckv.errors import DataError
from speckv.files import write_atomically
from speckv.traces import NO_TOKEN, TraceSet

ASSETS = Path(__file__).parents[1] / "assets" / "vocabularies"
FORMAT = "speckv-vocabulary"
FORMAT_VERSION = 1
_NAME_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The bytes of some tokens by id, in a small file that replaces the tokenizer.

    `tokenizer_sha256` is the hash of the whole vocabulary, as stored in recordings.
    """

    tokenizer_sha256: str
    pieces: Mapping[int, bytes]

    def save(self, path: Path) -> None:
        """Writes JSON, one token per line; bytes are stored as Latin-1 characters, which loses nothing."""
        # By hand, because the standard module would put each token on two lines or all of them on one.
        lines = [
            f'  "{number}": {json.dumps(piece.decode("latin-1"))}' for number, piece in sorted(self.pieces.items())
        ]
        head = {"format": FORMAT, "format_version": FORMAT_VERSION, "tokenizer_sha256": self.tokenizer_sha256}
        start = json.dumps(head, indent=1)[:-2]
        write_atomically(path, start + ',\n "pieces": {\n' + ",\n".join(lines) + "\n }\n}\n")

    @staticmethod
    def load(path: Path) -> "Vocabulary":
        """Reads what `save` wrote."""
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            if (content["format"], content["format_version"]) != (FORMAT, FORMAT_VERSION):
                raise ValueError(f"format {content['format']!r}, version {content['format_version']!r}")
            pieces = {int(number): piece.encode("latin-1") for number, piece in content["pieces"].items()}
            return Vocabulary(tokenizer_sha256=str(content["tokenizer_sha256"]), pieces=pieces)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: expected a vocabulary of format {FORMAT!r}, version {FORMAT_VERSION}, got {error!r}. "
                "Write it again with `speckv vocabulary`."
            ) from error


def shipped_path(tokenizer_sha256: str) -> Path:
    """Path of the shipped vocabulary of a tokenizer; the file may not exist."""
    return ASSETS / f"{tokenizer_sha256[:_NAME_DIGITS]}.json"


def shipped_vocabulary(tokenizer_sha256: str) -> Vocabulary | None:
    """The shipped vocabulary of a tokenizer, or None."""
    path = shipped_path(tokenizer_sha256)
    found = Vocabulary.load(path) if path.is_file() else None
    return found if found is not None and found.tokenizer_sha256 == tokenizer_sha256 else None


def tokens_of(traces: Iterable[TraceSet]) -> list[int]:
    """Every token in recordings, ascending: emitted, proposed, or proposed after a mismatch."""
    sequences = [sequence for one in traces for sequence in one.sequences]
    everything = [
        values for s in sequences for values in (s.tokens, s.draft_tokens, s.rollout_tokens.ravel()) if len(values)
    ]
    found = np.unique(np.concatenate(everything))
    return [int(token) for token in found if token != NO_TOKEN]


class TokenTexts:
    """The text that each token of one vocabulary adds; tokens without bytes are shown as numbers."""

    def __init__(self, pieces: Mapping[int, bytes]) -> None:
        self._pieces = pieces
        self.missing: set[int] = set()

    def emitted(self, tokens: Sequence[int]) -> list[str]:
        r"""The text of each token; a character that spans several tokens appears with the last of them.

        >>> TokenTexts({1: b"a", 2: b"\xc3", 3: b"\xa9!"}).emitted([1, 2, 3, 4])
        ['a', '', 'é!', '⟨4⟩']
        """
        return self.after([], tokens)

    def after(self, before: Sequence[int], tokens: Sequence[int]) -> list[str]:
        """The same for tokens that follow others and may complete their last character."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in before:
            decoder.decode(self._bytes(token))
        texts = [decoder.decode(self._bytes(token)) for token in tokens]
        if texts:
            texts[-1] += decoder.decode(b"", final=True)
        return texts

    def _bytes(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            self.missing.add(token)
            return f"\u27e8{token}\u27e9".encode()
        return piece
