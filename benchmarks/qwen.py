# SPDX-License-Identifier: Apache-2.0
"""The pair that live benchmarks run."""

from pathlib import Path

from speckv.models import ModelPair, PairConfig, load_pair

NAME = "Qwen2.5-Coder-1.5B-Instruct with 0.5B draft"


def files(weights: Path) -> tuple[Path, Path]:
    """Target and draft, by the names of the official GGUF files, in a folder."""
    target, draft = (weights / f"qwen2.5-coder-{size}-instruct-q4_k_m.gguf" for size in ("1.5b", "0.5b"))
    return target, draft


def load_qwen(weights: Path, *, dtype: str, compression: str = "fp16") -> ModelPair:
    """Loads the pair.

    Args:
        weights: Folder with its official GGUF files.
        dtype: Of the arithmetic, or "auto".
        compression: Of the target.
    """
    target, draft = files(weights)
    return load_pair(PairConfig(target=str(target), draft=str(draft), dtype=dtype, compression=compression))
