# SPDX-License-Identifier: Apache-2.0
"""A model with weights that its files lack is refused; tied weights and compressed models are not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Qwen2ForCausalLM

from speckv.errors import ModelError
from speckv.models.gguf import refuse_incomplete
from tests.fakes import save_tiny, tiny_qwen

COMPRESSIONS = [
    pytest.param({}, id="fp16"),
    pytest.param({"load_in_8bit": True}, id="int8"),
    pytest.param({"load_in_4bit": True}, id="nf4"),
]


def loading_info(folder: Path, compression: dict[str, bool] | None = None, **settings: Any) -> dict[str, Any]:
    if compression:
        pytest.importorskip("bitsandbytes")
        settings["quantization_config"] = BitsAndBytesConfig(**compression)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **settings
    )
    return dict(loaded[1])


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def tied(folder: Path) -> Path:
    config = tiny_qwen(0).config
    config.tie_word_embeddings = True
    Qwen2ForCausalLM(config).save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("save", [lambda folder: save_tiny(folder, tiny_qwen(0)), tied], ids=["untied", "tied"])
def test_whole_models_pass(save: Callable[[Path], Path], compression: dict[str, bool], tmp_path: Path) -> None:
    refuse_incomplete("tiny", loading_info(save(tmp_path), compression))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_missing_keys_are_refused(compression: dict[str, bool], tmp_path: Path) -> None:
    folder = rewrite(save_tiny(tmp_path, tiny_qwen(0)), lambda weights: weights.pop("model.norm.weight"))
    with pytest.raises(ModelError, match=r"Expected tiny to hold .* lacks 1 \(model\.norm\.weight\)\. Fetch"):
        refuse_incomplete("tiny", loading_info(folder, compression))


def test_a_missing_head_is_refused_unless_it_is_tied(tmp_path: Path) -> None:
    folder = rewrite(save_tiny(tmp_path / "untied", tiny_qwen(0)), lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(ModelError, match=r"lacks 1 \(lm_head\.weight\)"):
        refuse_incomplete("tiny", loading_info(folder))
    folder = rewrite(tied(tmp_path / "tied"), lambda weights: weights.pop("model.embed_tokens.weight"))
    with pytest.raises(ModelError, match=r"lacks 2 \(lm_head\.weight, model\.embed_tokens\.weight\)"):
        refuse_incomplete("tiny", loading_info(folder))


def test_an_index_without_a_shard_is_refused(tmp_path: Path) -> None:
    tiny_qwen(0).save_pretrained(tmp_path, max_shard_size="40KB")
    refuse_incomplete("tiny", loading_info(tmp_path))
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = min(content["weight_map"].values())
    content["weight_map"] = {key: shard for key, shard in content["weight_map"].items() if shard != first}
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"lacks \d+ \(.*, \.\.\.\)\. Fetch the whole model again"):
        refuse_incomplete("tiny", loading_info(tmp_path))


def test_mismatched_keys_are_refused(tmp_path: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"] = torch.ones(16)

    folder = rewrite(save_tiny(tmp_path, tiny_qwen(0)), change)
    with pytest.raises(ModelError, match=r"holds 1 in another shape \(model\.norm\.weight\)\. Merge them\."):
        refuse_incomplete("tiny", loading_info(folder, ignore_mismatched_sizes=True), advice="Merge them.")
