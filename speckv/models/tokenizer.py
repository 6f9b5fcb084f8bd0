# SPDX-License-Identifier: Apache-2.0
"""Where a model lies, and its tokenizer, which needs no weights."""

import hashlib
import json
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from speckv.errors import ModelError
from speckv.models.gguf import converted_folder


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Loads a model's tokenizer from a hub id, a folder or a GGUF file.

    Raises:
        ModelError: if it is missing, gated or damaged.
    """
    location = locate(source)
    try:
        AutoConfig.from_pretrained(location)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(location)
    except (OSError, ValueError) as error:
        raise load_error(source, error) from error
    return tokenizer


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, *, chat_template: bool) -> list[int]:
    """Token ids of a prompt, as a user's turn where that is wanted and the tokenizer has a chat template."""
    if chat_template and tokenizer.chat_template:
        turn = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(prompt)["input_ids"]
    return [int(token) for token in ids]


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of a vocabulary: two tokenizers with the same one map words to the same ids."""
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()


def locate(source: str) -> str:
    """Where a model is to be loaded from: a folder, into which a GGUF file is converted once, or a hub id.

    Raises:
        ModelError: if there is no such file or folder.
    """
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
    """What to tell where transformers could not load a model or tokenizer."""
    text = " ".join(str(error).split())
    if "gated" in text or "401" in text or "403" in text:
        return ModelError(
            f"{source} is gated. Accept its licence on the hub and log in with `hf auth login`, then retry."
        )
    return ModelError(
        f"{source} could not be loaded ({text[:240]}). Expected a hub id that this machine can reach, a local folder "
        "or a .gguf file. Offline? Give files: model.target=PATH model.draft=PATH"
    )
