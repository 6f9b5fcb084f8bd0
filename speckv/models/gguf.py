# SPDX-License-Identifier: Apache-2.0
"""GGUF files, dequantised once into a folder that loads in seconds; and a check that no weight is missing."""

import copy
import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from speckv.errors import ModelError

logger = logging.getLogger(__name__)
DONE = "speckv-converted"
"""Marks a complete folder; holds the SHA-256 of the GGUF file."""
MERGE = "Merge the shards into one file: llama-gguf-split --merge FIRST_SHARD MERGED.gguf"


def cache_folder() -> Path:
    """`SPECKV_CACHE`, else `~/.cache/speckv`."""
    return Path(os.environ.get("SPECKV_CACHE", Path.home() / ".cache" / "speckv"))


def converted_folder(gguf: Path) -> Path:
    """The folder of a GGUF file's bfloat16 copy, made if there is none; it appears whole or not at all.

    It is named by a hash of the file, computed at every call: size and time can be the same after a rewrite. ModelError
    if the file cannot be converted or changes meanwhile, or the `models` extra is missing.
    """
    digest = _sha256(gguf)
    folder = cache_folder() / "models" / f"{gguf.stem}-{digest[:16]}"
    if _is_done(folder, digest):
        return folder
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"Reading {gguf.name} needs {' and '.join(missing)}. Install them: pip install 'speckv[models]'"
        )
    logger.info("Converting %s into %s; this takes about a minute, once", gguf.name, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        _convert(gguf, partial)
        if _sha256(gguf) != digest:
            raise ModelError(f"Expected {gguf} to stay as it is while it is converted, but it changed. Load it again.")
        (partial / DONE).write_text(digest)
        if not _is_done(folder, digest):  # another process may have finished first, and be reading
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_done(folder: Path, digest: str) -> bool:
    note = folder / DONE
    return note.is_file() and note.read_text() == digest


def _convert(gguf: Path, folder: Path) -> None:
    loaded: Any  # annotated upstream as a model alone
    try:
        shards = _split_count(gguf)
        if shards <= 1:
            loaded = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:  # a damaged file makes a parser raise anything
        raise ModelError(
            f"{gguf} could not be read as a GGUF model ({' '.join(str(error).split())[:200]}). Expected a whole file "
            "of an architecture that transformers can dequantise; fetch it again or use a hub id or a folder."
        ) from error
    if shards > 1:
        raise ModelError(f"Expected a whole GGUF model, got {gguf}, which is one of {shards} shards. {MERGE}")
    model, loading_info = loaded
    refuse_incomplete(
        str(gguf), loading_info, advice="Fetch the whole file again; if it is one of several, merge them."
    )
    # transformers refuses to save a model that came from GGUF: hand its weights to one that did not.
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(model.state_dict())
    fresh.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _split_count(gguf: Path) -> int:
    from gguf import GGUFReader  # an optional package

    field = GGUFReader(gguf).fields.get("split.count")
    return int(field.contents()) if field else 0


_NAMED = 3


def refuse_incomplete(source: str, loading_info: Mapping[str, Any], *, advice: str = "") -> None:
    """Raises ModelError, ending in `advice`, if weights were initialised at random; tied weights are not missing."""
    missing = sorted(loading_info.get("missing_keys") or ())
    mismatched = sorted(str(key[0]) for key in loading_info.get("mismatched_keys") or ())
    problems = [f"lacks {len(missing)} ({_first(missing)})"] if missing else []
    if mismatched:
        problems.append(f"holds {len(mismatched)} in another shape ({_first(mismatched)})")
    if problems:
        raise ModelError(
            f"Expected {source} to hold every weight that its configuration describes, but it {' and '.join(problems)}."
            f" {advice or 'Fetch the whole model again, with all of its shards.'}"
        )


def _first(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_NAMED]) + (", ..." if len(keys) > _NAMED else "")
