# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: the loop's text on it, compressed random models, and memory that comes back."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.divergence import explain
from benchmarks.gpu.models import graphs, load_random, random_model, random_pair
from benchmarks.gpu.stage import Settings, run_pieces
from benchmarks.random_policy import RandomPolicy
from benchmarks.step_breakdown import PARTS, break_down_all
from speckv.decoding import Engine, RequestContext, SamplingConfig, generate
from speckv.decoding.clock import device_clock
from speckv.models import ModelPair
from speckv.runtime.constant import ConstantGamma
from speckv.types import Controller

pytestmark = pytest.mark.gpu
CUDA = Settings(device="cuda", tiny=True)
CONTEXT = RequestContext(compression="fp16", cost_ratio=0.3)


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return load_random(random_pair(CUDA, dtype="float32"))


def decode(engine: Engine, pair: ModelPair, controller: Controller, request: str = "r") -> tuple[int, ...]:
    ids = pair.encode("Say something.")
    return generate(engine, ids, controller, context=CONTEXT, max_new_tokens=48, request=request).tokens


@pytest.mark.parametrize("mode", ["greedy", "gumbel"])
def test_any_policy_emits_plain_decodings_text_in_float32(pair: ModelPair, mode: str) -> None:
    sampling = SamplingConfig(mode=mode, seed=1)
    engine = Engine(pair.target, pair.draft, sampling=sampling, clock=device_clock(pair.target.device))
    plain = decode(engine, pair, ConstantGamma(0))
    for seed in range(4):
        policy = RandomPolicy(np.random.default_rng(seed), stop=0.2 * (seed % 2))
        text = decode(engine, pair, policy)
        where = explain(pair.target, pair.encode("Say something."), plain, text, sampling=sampling, request="r")
        assert where is None or where.gap_roundings < 64, where


@pytest.mark.parametrize("compression", ["int8", "nf4"])
def test_compressed_random_models_run_and_stay_near_the_uncompressed_one(compression: str) -> None:
    device = torch.device("cuda")
    logits = [
        random_model("tiny-target", dtype=torch.float16, device=device, compression=kind).sequence().extend([1, 2, 3])
        for kind in ("fp16", compression)
    ]
    assert logits[1].device.type == "cuda"
    similarity = torch.nn.functional.cosine_similarity(logits[0].float(), logits[1].float(), dim=-1)
    assert float(similarity.min()) > 0.8


def test_passes_run_as_graphs(pair: ModelPair) -> None:
    engine = Engine(pair.target, pair.draft)
    engine.capture_ahead(128)
    decode(engine, pair, ConstantGamma(3))
    assert graphs(pair) == {"target": "captured", "draft": "captured"}


def test_a_piece_releases_its_models_memory(tmp_path: Path) -> None:
    def fail_with_models(_: float) -> None:
        pair = load_random(random_pair(CUDA))
        raise ValueError(pair.config.name)

    torch.ones(1, device="cuda").item()
    before = torch.cuda.memory_allocated()
    run_pieces({"pair": fail_with_models}, tmp_path / "part.json", 60)
    assert torch.cuda.memory_allocated() == before


def test_memory_comes_back_after_requests(pair: ModelPair) -> None:
    engine = Engine(pair.target, pair.draft)

    def allocated() -> int:
        decode(engine, pair, ConstantGamma(3))
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    allocated()  # workspaces of the libraries are made once
    first = allocated()
    assert [allocated() - first for _ in range(5)] == [0] * 5


def test_parts_of_a_step_add_up_on_the_device(pair: ModelPair) -> None:
    parts = break_down_all(pair, pair.encode("Say something."), [2], 24)["2"]
    assert sum(parts[part] for part in PARTS) == pytest.approx(parts["step"])
    assert parts["draft"] > 0
    assert parts["verify"] > 0
