# SPDX-License-Identifier: Apache-2.0
"""GGUF files: dequantised once into a folder that loads in seconds."""

import copy
import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from speckv.errors import ModelError

logger = logging.getLogger(__name__)
DONE = "speckv-converted"


def cache_folder() -> Path:
    """Where converted models live: `SPECKV_CACHE`, else `~/.cache/speckv`."""
    return Path(os.environ.get("SPECKV_CACHE", Path.home() / ".cache" / "speckv"))


def converted_folder(gguf: Path) -> Path:
    """Returns the folder of a GGUF file's dequantised copy, converting it first if need be.

    Weights are stored in bfloat16. The conversion shows transformers' progress bars and appears whole or not at all.

    Raises:
        ModelError: if the file cannot be converted, or the `models` extra is missing.
    """
    stat = gguf.stat()
    digest = hashlib.sha256(f"{gguf.name}:{stat.st_size}:{_head(gguf)}".encode()).hexdigest()[:12]
    folder = cache_folder() / "models" / f"{gguf.stem}-{digest}"
    if (folder / DONE).is_file():
        return folder
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"Reading {gguf.name} needs {' and '.join(missing)}. Install them: pip install 'speckv[models]'"
        )
    logger.info("Converting %s once into %s", gguf.name, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        _convert(gguf, partial)
        (partial / DONE).write_text(gguf.name)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _head(gguf: Path) -> str:
    with gguf.open("rb") as stream:
        return hashlib.sha256(stream.read(1 << 22)).hexdigest()


def _convert(gguf: Path, folder: Path) -> None:
    try:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:  # a damaged file makes a parser raise anything
        raise ModelError(
            f"{gguf} could not be read as a GGUF model ({' '.join(str(error).split())[:200]}). Expected a whole file "
            "of an architecture that transformers can dequantise; fetch it again or use a hub id or a folder."
        ) from error
    # transformers refuses to save a model that came from GGUF: hand its weights to one that did not.
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(model.state_dict())
    fresh.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
