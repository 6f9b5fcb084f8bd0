# SPDX-License-Identifier: Apache-2.0
"""A converted GGUF folder belongs to the content of one whole file, and holds all of its weights."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from speckv.errors import ModelError
from speckv.models import gguf
from tests.fakes_gguf import TOKENS, write_gguf


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECKV_CACHE", str(tmp_path / "cache"))
    return tmp_path


def last_bytes(file: Path, folder: Path) -> None:
    """Stands in for the conversion."""
    (folder / "model.safetensors").write_bytes(file.read_bytes()[-8:])


def converted_bytes(file: Path) -> bytes:
    return (gguf.converted_folder(file) / "model.safetensors").read_bytes()


def test_weights_survive_the_conversion(folder: Path) -> None:
    (file,) = write_gguf(folder / "tiny.gguf")
    converted = gguf.converted_folder(file)
    before = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name).state_dict()
    after = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32).state_dict()
    assert before.keys() == after.keys()
    for name, weights in before.items():
        torch.testing.assert_close(after[name], weights.to(torch.bfloat16).float())
    assert AutoTokenizer.from_pretrained(converted)("cab")["input_ids"] == [2, TOKENS.index("ab")]


def test_a_rewritten_file_is_converted_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "_convert", last_bytes)
    file, head = folder / "mine.gguf", b"GGUF" + bytes(5 << 20)
    file.write_bytes(head + b"weightsA")
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    assert converted_bytes(file) == b"weightsA"
    file.write_bytes(head + b"weightsB")
    os.utime(file, ns=times)  # the same name, size and time of modification
    assert converted_bytes(file) == b"weightsB"
    file.write_bytes(head + b"weightsA")
    monkeypatch.setattr(gguf, "_convert", lambda *_: pytest.fail("the first conversion was not found again"))
    assert converted_bytes(file) == b"weightsA"


def test_a_folder_without_a_note_of_this_content_is_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "_convert", last_bytes)
    file = folder / "mine.gguf"
    file.write_bytes(b"GGUF-weightsA")
    converted = gguf.converted_folder(file)
    (converted / "model.safetensors").write_bytes(b"other")
    (converted / gguf.DONE).write_text("mine.gguf")
    assert gguf.converted_folder(file) == converted
    assert converted_bytes(file) == b"weightsA"


def test_a_file_that_changes_during_the_conversion_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "mine.gguf"
    file.write_bytes(b"GGUF-weightsA")

    def convert(file: Path, folder: Path) -> None:
        last_bytes(file, folder)
        file.write_bytes(b"GGUF-weightsB")

    monkeypatch.setattr(gguf, "_convert", convert)
    with pytest.raises(ModelError, match="while it is converted, but it changed"):
        gguf.converted_folder(file)
    assert not list((folder / "cache" / "models").iterdir())


def test_shards_are_refused(folder: Path) -> None:
    shards = write_gguf(folder / "tiny.gguf", shard_tensors=12)
    assert len(shards) == 2
    renamed = shards[0].rename(folder / "whole.gguf")
    for shard in (renamed, shards[1]):
        with pytest.raises(ModelError, match=r"one of 2 shards\. Merge .* llama-gguf-split --merge"):
            gguf.converted_folder(shard)
    assert not list((folder / "cache" / "models").iterdir())


@pytest.mark.parametrize("tensor", ["blk.1.attn_q.weight", "output_norm.weight", "token_embd.weight"])
def test_a_file_that_lacks_a_tensor_is_refused(folder: Path, tensor: str) -> None:
    (file,) = write_gguf(folder / "tiny.gguf", without=[tensor])
    with pytest.raises(ModelError, match="every weight that its configuration describes, but it lacks 1 "):
        gguf.converted_folder(file)
    assert not list((folder / "cache" / "models").iterdir())
