# SPDX-License-Identifier: Apache-2.0
"""A model's own `generation_config` is followed as `generate(do_sample=False)` follows it."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from speckv.decoding import BatchEngine, Engine, SamplingConfig
from speckv.errors import ConfigError
from speckv.models import ModelPair, PairConfig, RaggedModel, load_pair
from speckv.profiling.prompts import Prompt
from speckv.profiling.record import Recorder
from tests.fakes import VOCAB, save_tiny, tiny_qwen

SETTINGS: dict[str, dict[str, Any]] = {
    "as Qwen ships": {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.3},
    "n-grams": {"no_repeat_ngram_size": 2},
    "suppressed": {"suppress_tokens": [3, 7, 11], "begin_suppress_tokens": [5, 6]},
    "least length": {"min_new_tokens": 25, "eos_token_id": [4, 9], "pad_token_id": 0},
    "bias": {"sequence_bias": [[[3], -8.0], [[7, 5], 6.0]], "bad_words_ids": [[11]]},
    "forced end": {"forced_eos_token_id": 9},
}
NEW = 30


def loaded(folder: Path, **settings: Any) -> ModelPair:
    target = tiny_qwen(0)
    draft = tiny_qwen(1, like=target, noise=0.01)
    for name, value in settings.items():
        setattr(target.generation_config, name, value)
    save_tiny(folder / "t", target)
    save_tiny(folder / "d", draft)
    config = PairConfig(target=str(folder / "t"), draft=str(folder / "d"), dtype="float64", device="cpu")
    return load_pair(config)


def prompt(seed: int) -> list[int]:
    return torch.randint(VOCAB, (7 + seed,), generator=torch.Generator().manual_seed(seed)).tolist()


def plain(pair: ModelPair, seed: int) -> list[int]:
    ids = torch.tensor([prompt(seed)])
    hf: Any = pair.target.hf
    text = hf.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        do_sample=False,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
    )
    found: list[int] = text[0, ids.shape[1] :].tolist()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_engine_batch_and_recording_write_the_text_of_generate(tmp_path: Path, name: str) -> None:
    pair = loaded(tmp_path, **SETTINGS[name])
    texts = [plain(pair, seed) for seed in range(2)]
    rng, accepted = random.Random(0), 0
    engine = Engine(pair.target, pair.draft, eos_token_ids=pair.eos_token_ids)
    for seed, text in enumerate(texts):
        engine.start(prompt(seed), max_new_tokens=NEW)
        while engine.finish is None:
            accepted += engine.step(rng.randrange(6)).outcome.num_accepted
        assert engine.tokens == text
    assert accepted > 0
    batch = BatchEngine(RaggedModel(pair.target), RaggedModel(pair.draft), eos_token_ids=pair.eos_token_ids)
    batch.start([prompt(seed) for seed in range(2)], max_new_tokens=NEW)
    rows = batch.running
    while batch.running:
        batch.step([rng.randrange(6) for _ in batch.running])
    assert [row.tokens for row in rows] == texts
    recorder = Recorder(
        pair.target,
        pair.draft,
        eos_token_ids=pair.eos_token_ids,
        sampling=SamplingConfig(),
        max_new_tokens=NEW,
    )
    named = [Prompt(prompt_id=str(seed), task="t", text="x", split="train") for seed in range(2)]
    for seed, sequence in enumerate(recorder.record(named, [prompt(seed) for seed in range(2)])):
        assert sequence.tokens.tolist() == texts[seed]
        engine.start(prompt(seed), max_new_tokens=NEW)
        while engine.finish is None:
            position = len(engine.tokens)
            step = engine.step(5)
            drafted, _ = sequence.draft_from(position, min(5, NEW - position - 1, int(sequence.eos_stop[position])))
            assert step.drafted == tuple(drafted.tolist())


def test_a_pair_without_settings_processes_nothing(tmp_path: Path) -> None:
    pair = loaded(tmp_path)
    assert pair.target.defaults is not None
    assert pair.target.defaults.settings == {}
    assert pair.target.request_processors([1, 2], 5) is None


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"num_beams": 3}, "settings of beam_search"),
        ({"stop_strings": ["a"]}, "stop_strings"),
        ({"token_healing": True}, "token_healing"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
    ],
)
def test_settings_that_greedy_decoding_cannot_follow_are_refused(
    tmp_path: Path, settings: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ConfigError, match=fault):
        loaded(tmp_path, **settings)


@pytest.mark.parametrize("ends", [None, 4, [4, 9]])
def test_texts_end_where_those_of_generate_end(tmp_path: Path, ends: Any) -> None:
    pair = loaded(tmp_path, eos_token_id=ends, pad_token_id=0)
    assert pair.eos_token_ids == frozenset([ends] if isinstance(ends, int) else ends or [])
    engine = Engine(pair.target, pair.draft, eos_token_ids=pair.eos_token_ids)
    for seed in range(3):
        engine.start(prompt(seed), max_new_tokens=NEW)
        while engine.finish is None:
            engine.step(4)
        assert engine.tokens == plain(pair, seed)
