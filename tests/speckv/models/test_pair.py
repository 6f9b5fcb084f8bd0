# SPDX-License-Identifier: Apache-2.0
"""Loading: what fits is loaded, what does not is refused with the mend named."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from speckv.decoding import PromptLookup, draft_source
from speckv.errors import CompressionError, ConfigError, ModelError
from speckv.models import PairConfig, compression, load_pair
from speckv.models.compression import get_compression
from speckv.models.dtypes import fastest_cpu_dtype, resolve_dtype
from speckv.models.pair import causal_model, resolve_device
from speckv.observation import StaticContext
from speckv.types import BITS_PER_WEIGHT
from tests.fakes import save_tiny, tiny_qwen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", tiny_qwen(0))


def config(target: Path, draft: Path | str, **settings: object) -> PairConfig:
    return PairConfig(target=str(target), draft=str(draft), dtype="float32", device="cpu", **settings)  # type: ignore[arg-type]


def test_a_pair_from_folders(folder: Path) -> None:
    pair = load_pair(config(folder, folder))
    assert (pair.target.compression, pair.target.dtype, pair.target.vocab_size) == ("fp16", torch.float32, 24)
    assert pair.encode("df") == [3, 5]
    assert len(pair.target.sha256()) == 64


def test_cached_logits_equal_a_fresh_pass_after_truncation(folder: Path) -> None:
    model = load_pair(config(folder, folder)).target
    cached, fresh = model.sequence(), model.sequence()
    cached.extend([1, 2, 3, 4, 5])
    cached.truncate(2)
    torch.testing.assert_close(cached.extend([7, 8]), fresh.extend([1, 2, 7, 8])[2:], atol=1e-5, rtol=1e-4)
    cached.truncate(9)
    assert cached.length == 4


def test_a_draft_of_the_first_layers(folder: Path) -> None:
    whole = load_pair(config(folder, "self"))
    shallow = load_pair(config(folder, "self", draft_layers=1))
    logits = [m.sequence().extend([1, 2, 3]) for m in (whole.target, whole.draft, shallow.draft)]
    torch.testing.assert_close(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])
    assert len(shallow.target.hf.model.layers) == 2  # the target keeps its own
    with pytest.raises(ConfigError, match=r"draft_layers in 0\.\.2"):
        load_pair(config(folder, "self", draft_layers=3))


def test_a_lookup_needs_no_draft_model(folder: Path) -> None:
    pair = load_pair(config(folder, "lookup", lookup_longest=3))
    source = draft_source(pair)
    assert isinstance(source, PromptLookup)
    assert (source.name, source.vocab_size) == ("prompt-lookup(3,2)", 24)
    with pytest.raises(ModelError, match=r"model\.draft=lookup, which has none"):
        _ = pair.draft
    with_model = load_pair(config(folder, folder))
    assert draft_source(with_model) is with_model.draft
    with pytest.raises(ConfigError, match="got 5 and 4"):
        draft_source(load_pair(config(folder, "lookup", lookup_shortest=5)))


def test_another_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", tiny_qwen(1), letters="xwvutsrqponmlkjihgfedcba")
    with pytest.raises(ModelError, match="share one tokenizer"):
        load_pair(config(folder, other))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/folder", "found nothing"),
        ("/no/such/file.gguf", "GGUF file"),
        ("nobody/no-such-model", "could not be loaded"),
    ],
)
def test_a_missing_model_is_refused(folder: Path, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_pair(PairConfig(target=name, draft=str(folder), device="cpu"))


def test_a_damaged_folder_and_a_damaged_gguf_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECKV_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"config\.json"):
        load_pair(config(tmp_path / "empty", folder))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    with pytest.raises(ModelError, match="could not be read as a GGUF model"):
        load_pair(config(broken, folder))
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_unknown_compressions_devices_and_dtypes(folder: Path) -> None:
    with pytest.raises(CompressionError, match="Did you mean 'int8'"):
        load_pair(config(folder, folder, compression="int9"))
    with pytest.raises(ConfigError, match="Expected device"):
        load_pair(PairConfig(target=str(folder), draft=str(folder), device="tpu9"))
    with pytest.raises(ConfigError, match="Expected dtype"):
        resolve_dtype("float33", torch.device("cpu"))
    with pytest.raises(CompressionError, match="runs on cpu, cuda"):
        get_compression("nf4", torch.device("meta"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda(folder: Path) -> None:
    with pytest.raises(ConfigError, match="found none"):
        load_pair(PairConfig(target=str(folder), draft=str(folder), device="cuda"))


def test_a_gpu_that_is_not_there_is_refused_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="Expected one of 2 CUDA devices, from cuda:0 on, got 'cuda:2'"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_bfloat16_that_a_gpu_only_emulates_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype
) -> None:
    asked: list[torch.device] = []

    def entered(device: torch.device) -> AbstractContextManager[None]:
        asked.append(device)
        return nullcontext()

    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation  # as torch answers on a T4

    monkeypatch.setattr(torch.cuda, "device", entered)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert resolve_dtype("auto", torch.device("cuda:1")) == dtype
    assert asked == [torch.device("cuda:1")]


def test_int8_layers_are_not_captured_whatever_the_model_is_said_to_be() -> None:
    model = tiny_qwen(0)
    made = partial(causal_model, model, name="m", compression="fp16", dtype=torch.float64, device=torch.device("cpu"))
    assert made().captures_graphs
    model.model.layers[0].mlp.up_proj.__class__ = type("Linear8bitLt", (nn.Linear,), {})  # bitsandbytes' name
    assert not made().captures_graphs


def test_the_fastest_dtype_is_one_that_was_measured() -> None:
    assert fastest_cpu_dtype() in (torch.float32, torch.bfloat16)


def test_the_head_is_given_rows_with_plain_strides(folder: Path) -> None:
    """A slice of more rows would have PyTorch copy the head's whole weight, at every pass that catches up."""
    pair = load_pair(config(folder, folder))
    seen: list[tuple[int, ...]] = []
    head = pair.target.hf.get_output_embeddings()
    head.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0].stride()))
    sequence = pair.target.sequence()
    sequence.extend([1, 2, 3], num_logits=1)
    sequence.extend([4, 5], num_logits=1)
    sequence.extend([6, 7, 8])
    assert seen == [(32, 32, 1), (32, 32, 1), (96, 32, 1)]


def test_a_compression_of_ones_own_is_loaded_and_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "COMPRESSION_KINDS", dict(compression.COMPRESSION_KINDS))
    monkeypatch.delitem(BITS_PER_WEIGHT, "mine", raising=False)
    monkeypatch.setitem(BITS_PER_WEIGHT, "mine", 0.0)  # taken back after the test
    asked: list[torch.dtype] = []
    compression.register_compression(
        compression.Compression(name="mine", bits_per_weight=6.0, quantization_config=asked.append)
    )
    pair = load_pair(replace(config(folder, folder), compression="mine"))
    assert pair.target.compression == "mine"
    assert asked == [pair.target.dtype]
    assert StaticContext.of(["mine"], {"mine": 0.5}, [8]).bits_per_weight.tolist() == [6.0]
