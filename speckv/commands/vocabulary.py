# SPDX-License-Identifier: Apache-2.0
"""`speckv vocabulary tokenizer=FOLDER traces=[FILE] out=FILE`: the texts of recorded tokens alone."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from speckv.errors import TraceError
from speckv.models.tokenizer import load_tokenizer, token_bytes, vocabulary_hash
from speckv.report.texts import Vocabulary, tokens_of
from speckv.traces import ASSETS, TraceSet, find_traces

logger = logging.getLogger(__name__)
SHIPPED = "shipped"


def run(config: DictConfig) -> None:
    """Writes the bytes of every token that occurs in the recordings."""
    names = sorted(ASSETS.glob("*.parquet")) if SHIPPED in config.traces else list(config.traces)
    traces = {str(name): TraceSet.load(find_traces(name)) for name in names}
    out = Path(config.out)
    vocabulary = vocabulary_of(config.tokenizer, traces)
    vocabulary.save(out)
    logger.info("%s: %d tokens, %.2f MB", out, len(vocabulary.pieces), out.stat().st_size / 1e6)


def vocabulary_of(tokenizer_source: str, traces: dict[str, TraceSet]) -> Vocabulary:
    """The bytes of every token in some recordings, given by name.

    Raises:
        ModelError: if the tokenizer is no hub id, folder or GGUF file.
        TraceError: if recordings were made with another one.
    """
    tokenizer = load_tokenizer(tokenizer_source)
    found = vocabulary_hash(tokenizer)
    for name, one in traces.items():
        expected = one.metadata.tokenizer_sha256
        if expected != found:
            raise TraceError(
                f"Expected the tokenizer that {name} was recorded with, sha256 {expected[:16]}, got {tokenizer_source} "
                f"with {found[:16]}. Name the tokenizer of {one.metadata.target_id}."
            )
    return Vocabulary(tokenizer_sha256=found, pieces=token_bytes(tokenizer, tokens_of(traces.values())))
