# SPDX-License-Identifier: Apache-2.0
"""What the tokens of a recording say: their bytes in a small file, so that no tokenizer is needed."""

import json
from collections.abc import Iterable, Mapping
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
    """The bytes of some tokens.

    Attributes:
        tokenizer_sha256: Hash of the whole vocabulary that they are taken from, as recordings name it.
        pieces: Token id -> bytes, perhaps half a character.
    """

    tokenizer_sha256: str
    pieces: Mapping[int, bytes]

    def save(self, path: Path) -> None:
        """Writes JSON, one token a line; a byte is the letter of that number, so that nothing is lost."""
        # By hand, because the standard module would put each token on two lines or all of them on one.
        lines = [
            f'  "{number}": {json.dumps(piece.decode("latin-1"))}' for number, piece in sorted(self.pieces.items())
        ]
        head = {"format": FORMAT, "format_version": FORMAT_VERSION, "tokenizer_sha256": self.tokenizer_sha256}
        start = json.dumps(head, indent=1)[:-2]
        write_atomically(path, start + ',\n "pieces": {\n' + ",\n".join(lines) + "\n }\n}\n")

    @staticmethod
    def load(path: Path) -> "Vocabulary":
        """Reads what `save` wrote.

        Raises:
            DataError: if it is missing or damaged.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            if (content["format"], content["format_version"]) != (FORMAT, FORMAT_VERSION):
                raise ValueError(f"format {content['format']!r}, version {content['format_version']!r}")
            pieces = {int(number): piece.encode("latin-1") for number, piece in content["pieces"].items()}
            return Vocabulary(tokenizer_sha256=str(content["tokenizer_sha256"]), pieces=pieces)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: expected a vocabulary of format {FORMAT!r}, version {FORMAT_VERSION}, got {error!r}. "
                "Write it again with `python -m speckv vocabulary`."
            ) from error


def shipped_path(tokenizer_sha256: str) -> Path:
    """Where the vocabulary of a tokenizer lies, if one is shipped."""
    return ASSETS / f"{tokenizer_sha256[:_NAME_DIGITS]}.json"


def shipped_vocabulary(tokenizer_sha256: str) -> Vocabulary | None:
    """The vocabulary that comes with SpecKV for recordings of a tokenizer, or None."""
    path = shipped_path(tokenizer_sha256)
    if not tokenizer_sha256 or not path.is_file():
        return None
    found = Vocabulary.load(path)
    return found if found.tokenizer_sha256 == tokenizer_sha256 else None


def tokens_of(traces: Iterable[TraceSet]) -> list[int]:
    """Every token that occurs in recordings: emitted, proposed, or proposed behind a wrong one; ascending."""
    sequences = [sequence for one in traces for sequence in one.sequences]
    everything = [
        values for s in sequences for values in (s.tokens, s.draft_tokens, s.rollout_tokens.ravel()) if len(values)
    ]
    found = np.unique(np.concatenate(everything))
    return [int(token) for token in found if token != NO_TOKEN]
