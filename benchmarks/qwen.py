# SPDX-License-Identifier: Apache-2.0
"""The pair that live benchmarks run."""

from pathlib import Path

from speckv.models import ModelPair, PairConfig, load_pair

NAME = "Qwen2.5-Coder-1.5B-Instruct with 0.5B draft"


def load_qwen(weights: Path, *, dtype: str, compression: str = "fp16", draft: str = "0.5b") -> ModelPair:
    """Loads the pair.

    Args:
        weights: Folder with its official GGUF files.
        dtype: Of the arithmetic, or "auto".
        compression: Of the target.
        draft: "0.5b", or "lookup" for no model.
    """
    files = {size: str(weights / f"qwen2.5-coder-{size}-instruct-q4_k_m.gguf") for size in ("1.5b", "0.5b")}
    config = PairConfig(target=files["1.5b"], draft=files.get(draft, draft), dtype=dtype, compression=compression)
    return load_pair(config)
