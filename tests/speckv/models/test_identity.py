# SPDX-License-Identifier: Apache-2.0
"""A model's hash covers its weights, in whatever files they lie."""

import hashlib
from pathlib import Path

import pytest

from speckv.models import causal
from speckv.models.causal import weights_sha256
from tests.fakes import as_causal, tiny_qwen


def test_every_weight_file_counts(tmp_path: Path) -> None:
    assert weights_sha256(None) == weights_sha256(tmp_path) == ""
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"one")
    (tmp_path / "pytorch_model-00002-of-00002.bin").write_bytes(b"two")
    assert weights_sha256(tmp_path) == hashlib.sha256(b"onetwo").hexdigest()
    (tmp_path / "model.safetensors").write_bytes(b"three")
    assert weights_sha256(tmp_path) == hashlib.sha256(b"three").hexdigest()


def test_a_model_of_the_hub_is_hashed_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"three")
    asked = []

    def cached_file(name: str, file: str, *, local_files_only: bool) -> str:
        asked.append((name, local_files_only))
        return str(tmp_path / file)

    monkeypatch.setattr(causal, "cached_file", cached_file)
    assert as_causal(tiny_qwen(0), name="someone/model").sha256() == hashlib.sha256(b"three").hexdigest()
    assert asked == [("someone/model", True)]
    monkeypatch.undo()
    assert as_causal(tiny_qwen(0), name="nobody/none").sha256() == ""
