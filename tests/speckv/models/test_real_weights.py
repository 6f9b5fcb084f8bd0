# SPDX-License-Identifier: Apache-2.0
"""The same promises on real weights: SmolLM2-135M drafted for by its own first layers, and the Qwen pair.

Converted models are kept in SPECKV_CACHE (or ~/.cache/speckv), so a second run loads in seconds.
"""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speckv.decoding import BatchEngine, Engine, SamplingConfig
from speckv.models import ModelPair, PairConfig, RaggedModel, load_pair
from speckv.profiling.prompts import Prompt
from speckv.profiling.record import Recorder

pytestmark = [pytest.mark.model, pytest.mark.slow]

PROMPTS = (
    "Write a Python function that returns the n-th Fibonacci number.",
    "A train leaves at 9:40 and arrives at 11:05. How long is the journey?",
    "What should I pack for a weekend in the mountains?",
    "Summarize: The city council voted on Tuesday to close the old bridge for repairs that will last until spring.",
)
BUDGET = 12


@pytest.fixture(scope="module")
def smol(weights_dir: Path) -> ModelPair:
    path = weights_dir / "smollm2-135m-instruct-q4_1.gguf"
    return load_pair(PairConfig(target=str(path), draft="self", draft_layers=24, dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def qwen(weights_dir: Path) -> ModelPair:
    names = [f"qwen2.5-coder-{size}-instruct-q4_k_m.gguf" for size in ("1.5b", "0.5b")]
    target, draft = (str(weights_dir / name) for name in names)
    return load_pair(PairConfig(target=target, draft=draft, dtype="float32", device="cpu"))


def generate_plainly(pair: ModelPair, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    hf: Any = pair.target.hf
    output = hf.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=BUDGET,
        do_sample=False,
        eos_token_id=sorted(pair.eos_token_ids),
        pad_token_id=min(pair.eos_token_ids),
    )
    return [int(token) for token in output[0, len(prompt) :]]


def decode(engine: Engine, prompt: list[int], gammas: Iterator[int], request: str = "r") -> list[int]:
    engine.start(prompt, max_new_tokens=BUDGET, request=request)
    while engine.finish is None:
        engine.step(next(gammas))
    return engine.tokens


def random_gammas(seed: int) -> Iterator[int]:
    rng = random.Random(seed)
    while True:
        yield rng.choice([0, 1, 2, 3, 5, 8, 16])


@pytest.mark.parametrize("text", PROMPTS[:2])
def test_smol_greedy_is_the_targets_own_text(smol: ModelPair, text: str) -> None:
    prompt = smol.encode(text)
    engine = Engine(smol.target, smol.draft, eos_token_ids=smol.eos_token_ids)
    assert decode(engine, prompt, random_gammas(1)) == generate_plainly(smol, prompt)


def test_smol_gumbel_text_does_not_depend_on_gamma(smol: ModelPair) -> None:
    sampling = SamplingConfig(mode="gumbel", temperature=0.8, top_p=0.95, seed=11)
    engine = Engine(smol.target, smol.draft, eos_token_ids=smol.eos_token_ids, sampling=sampling)
    prompt = smol.encode(PROMPTS[2])
    assert decode(engine, prompt, random_gammas(2)) == decode(engine, prompt, itertools.repeat(0))


def test_smol_rows_of_a_batch_are_requests_alone(smol: ModelPair) -> None:
    sampling, eos = SamplingConfig(mode="gumbel", temperature=0.8, seed=3), smol.eos_token_ids
    alone = Engine(smol.target, smol.draft, eos_token_ids=eos, sampling=sampling)
    batch = BatchEngine(RaggedModel(smol.target), RaggedModel(smol.draft), eos_token_ids=eos, sampling=sampling)
    prompts, gammas = [smol.encode(text) for text in PROMPTS], random_gammas(7)
    batch.start(prompts[:3], max_new_tokens=[BUDGET, 5, BUDGET], requests=["r"] * 3)
    rows = list(batch.running)
    while batch.running:
        batch.step([next(gammas) for _ in batch.running])
        if len(rows) == 3 and len(batch.running) == 2:  # the second row has ended: another one takes its place
            batch.admit(prompts[3:], max_new_tokens=BUDGET, requests=["r"])
            rows += batch.running[2:]
    for row, prompt in zip(rows, prompts, strict=True):
        expected = decode(alone, prompt, itertools.repeat(2))
        assert row.tokens == expected[: row.budget]


@pytest.mark.parametrize("mode", ["greedy", "gumbel"])
def test_smol_recording_replays_exactly(smol: ModelPair, mode: str) -> None:
    check_replay(smol, PROMPTS[:2], SamplingConfig(mode=mode, temperature=1.0, seed=5))


@pytest.mark.parametrize("compression", ["int8", "nf4"])
def test_smol_compressed(weights_dir: Path, compression: str) -> None:
    path = weights_dir / "smollm2-135m-instruct-q4_1.gguf"
    pair = load_pair(
        PairConfig(target=str(path), draft=str(path), compression=compression, dtype="float32", device="cpu")
    )
    assert pair.target.compression == compression
    engine = Engine(pair.target, pair.draft, eos_token_ids=pair.eos_token_ids)
    prompt = pair.encode(PROMPTS[1])
    tokens, plain = decode(engine, prompt, random_gammas(3)), decode(engine, prompt, itertools.repeat(0))
    if compression == "nf4":
        assert tokens == plain
    else:
        # LLM.int8() picks its outlier columns anew in every pass, so a wider pass is another function: numerics.md.
        assert tokens[0] == plain[0]
        assert len(tokens) > 1


@pytest.mark.parametrize("text", PROMPTS[:1])
def test_qwen_greedy_is_the_targets_own_text(qwen: ModelPair, text: str) -> None:
    prompt = qwen.encode(text)
    engine = Engine(qwen.target, qwen.draft, eos_token_ids=qwen.eos_token_ids)
    assert decode(engine, prompt, random_gammas(4)) == generate_plainly(qwen, prompt)


def test_qwen_recording_replays_exactly(qwen: ModelPair) -> None:
    check_replay(qwen, PROMPTS[:1], SamplingConfig())


def check_replay(pair: ModelPair, texts: tuple[str, ...], sampling: SamplingConfig) -> None:
    prompts = [Prompt(prompt_id=f"r{i}", task="x", text=text, split="test") for i, text in enumerate(texts)]
    ids = [pair.encode(text) for text in texts]
    recorder = Recorder(
        pair.target, pair.draft, eos_token_ids=pair.eos_token_ids, sampling=sampling, max_new_tokens=BUDGET
    )
    engine = Engine(pair.target, pair.draft, eos_token_ids=pair.eos_token_ids, sampling=sampling)
    for prompt, sequence in zip(ids, recorder.record(prompts, ids), strict=True):
        engine.start(prompt, max_new_tokens=BUDGET, request=sequence.prompt_id)
        gammas = random_gammas(6)
        while engine.finish is None:
            position, gamma = len(engine.tokens), next(gammas)
            drafted = min(gamma, BUDGET - position - 1, int(sequence.eos_stop[position]))
            step = engine.step(gamma)
            assert step.outcome.num_drafted == drafted
            assert step.outcome.num_accepted == min(drafted, int(sequence.accepted_length[position]))
            tokens, found = sequence.draft_from(position, drafted)
            # Behind a tie of the draft's two best tokens, the recording (a batch) and the engine may go different ways.
            tied = step.outcome.draft_signals[:, 2] < 1e-4
            same = int(tied.argmax()) if tied.any() else drafted
            assert tokens.tolist()[:same] == list(step.drafted)[:same]
            np.testing.assert_allclose(found[:same], step.outcome.draft_signals[:same], atol=5e-3)
        assert engine.tokens == sequence.tokens.tolist()
