# SPDX-License-Identifier: Apache-2.0
"""The pairs that live benchmarks run."""

import copy
from pathlib import Path

from speckv.models import ModelPair, PairConfig, load_pair

NAME = "Qwen2.5-Coder-1.5B-Instruct with 0.5B draft"
SMOL_LAYERS = 10
SMOL_NAME = f"SmolLM2-135M-Instruct, drafted by its own first {SMOL_LAYERS} of 30 layers"


def files(weights: Path) -> tuple[Path, Path]:
    """Target and draft, by the names of the official GGUF files, in a folder."""
    target, draft = (weights / f"qwen2.5-coder-{size}-instruct-q4_k_m.gguf" for size in ("1.5b", "0.5b"))
    return target, draft


def load_qwen(weights: Path, *, dtype: str, compression: str = "fp16", draft: str = "0.5b") -> ModelPair:
    """Loads the pair.

    Args:
        weights: Folder with its official GGUF files.
        dtype: Of the arithmetic, or "auto".
        compression: Of the target.
        draft: "0.5b", or "lookup" for no model.
    """
    target, small = files(weights)
    chosen = str(small) if draft == "0.5b" else draft
    return load_pair(PairConfig(target=str(target), draft=chosen, dtype=dtype, compression=compression))


def load_smol(weights: Path, *, dtype: str) -> ModelPair:
    """Loads a small model that drafts for itself: passes are short, so whatever a loop adds to them shows.

    Args:
        weights: Folder with its GGUF file.
        dtype: Of the arithmetic, or "auto".
    """
    target = str(weights / "smollm2-135m-instruct-q4_1.gguf")
    pair = load_pair(PairConfig(target=target, draft="self", draft_layers=SMOL_LAYERS, dtype=dtype))
    # Transformers' assisted generation takes a draft's settings from there: the target's must stay its own.
    pair.draft.hf.generation_config = copy.deepcopy(pair.target.hf.generation_config)
    return pair
