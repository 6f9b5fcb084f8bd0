# SPDX-License-Identifier: Apache-2.0
"""Tiny GGUF files with random weights, whole or split."""

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TOKENS = [*"abcdefghijklmnopqrstuvw", "ab", "<s>", "</s>"]
HIDDEN, FEED_FORWARD, LAYERS, HEADS = 32, 64, 2, 4


def write_gguf(path: Path, *, seed: int = 0, without: Collection[str] = (), shard_tensors: int = 0) -> list[Path]:
    """Writes a random two-layer Llama.

    Args:
        path: The file, or what the names of its shards begin with.
        seed: Of the weights.
        without: Tensors that are left out.
        shard_tensors: Most tensors of a shard; 0 writes one file.

    Returns:
        The files.
    """
    from gguf import GGUFWriter  # an optional package

    writer = GGUFWriter(path, "llama", split_max_tensors=shard_tensors)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 2) + [3, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(len(TOKENS) - 2)
    writer.add_eos_token_id(len(TOKENS) - 1)
    writer.add_vocab_size(len(TOKENS))
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    for name, tensor in _tensors(seed):
        if name not in without:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [path] if path.is_file() else sorted(path.parent.glob(f"{path.stem}-*.gguf"))


def _tensors(seed: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    rng = np.random.default_rng(seed)

    def random(rows: int, columns: int) -> NDArray[np.float32]:
        return (0.2 * rng.standard_normal((rows, columns))).astype(np.float32)

    yield "token_embd.weight", random(len(TOKENS), HIDDEN)
    yield "output.weight", random(len(TOKENS), HIDDEN)
    yield "output_norm.weight", np.ones(HIDDEN, np.float32)
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"blk.{layer}.{name}.weight", random(HIDDEN, HIDDEN)
        for name in ("ffn_gate", "ffn_up"):
            yield f"blk.{layer}.{name}.weight", random(FEED_FORWARD, HIDDEN)
        yield f"blk.{layer}.ffn_down.weight", random(HIDDEN, FEED_FORWARD)
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", np.ones(HIDDEN, np.float32)
