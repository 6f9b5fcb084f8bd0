# SPDX-License-Identifier: Apache-2.0
"""custom_generate serves what a call of `generate` asks for as plain `generate` does, or refuses it by name."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LogitsProcessorList,
    StoppingCriteriaList,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TextIteratorStreamer,
    TopKLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from speckv.errors import ConfigError
from speckv.integrations.transformers import custom_generate, prepare
from speckv.runtime import Policy
from tests.fakes import VOCAB, tiny_qwen
from tests.fakes_policies import Scheduled
from tests.fakes_requests import REFUSED, SERVED, EndsWith, QwenPair, letters

GREEDY: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False}


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(1, VOCAB, (1, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def free(pair: QwenPair, ids: Tensor) -> list[int]:
    found: list[int] = pair[0].generate(ids, **GREEDY)[0].tolist()
    return found


def ours(pair: QwenPair, gamma: int | Callable[[int], int], **more: Any) -> dict[str, Any]:
    schedule = Scheduled.turns(gamma) if isinstance(gamma, int) else Scheduled(gamma)
    policy = Policy.of(schedule, learns=True, cost_ratio={"fp16": 0.3})
    return {"custom_generate": custom_generate, "draft_model": pair[1], "policy": policy, **more}


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("name", SERVED)
def test_text_is_that_of_plain_generate(
    name: str, prepared: bool, pair: QwenPair, ids: Tensor, free: list[int]
) -> None:
    if prepared:
        pair = tiny_qwen(0), tiny_qwen(1, like=tiny_qwen(0), noise=0.008)
        prepare(*pair, static_cache=True)
    target: Any = pair[0]
    plain = target.generate(ids, **{**GREEDY, **SERVED[name](free)})[0].tolist()
    for gamma in (0, 1, 4, 9):
        found = target.generate(ids, **{**GREEDY, **SERVED[name](free)}, **ours(pair, gamma))
        assert found[0].tolist() == plain, gamma


def test_stop_strings_are_a_criterion(pair: QwenPair, ids: Tensor, free: list[int]) -> None:
    tokenizer = letters()
    stop = tokenizer.decode(free[18:20])
    target: Any = pair[0]
    plain = target.generate(ids, stop_strings=[stop], tokenizer=tokenizer, **GREEDY)
    criteria = StoppingCriteriaList([StopStringCriteria(tokenizer, [stop])])
    assert target.generate(ids, stopping_criteria=criteria, **GREEDY, **ours(pair, 4)).tolist() == plain.tolist()
    with pytest.raises(ValueError, match="could not locate a tokenizer"):
        target.generate(ids, stop_strings=[stop], tokenizer=tokenizer, **GREEDY, **ours(pair, 4))


class Kept(BaseStreamer):
    def __init__(self) -> None:
        self.pieces: list[list[int]] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        assert not self.ended
        self.pieces.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("gamma", [0, 4])
def test_a_streamer_receives_what_plain_generate_streams(
    gamma: int, pair: QwenPair, ids: Tensor, free: list[int]
) -> None:
    target: Any = pair[0]
    plain, streamed = Kept(), Kept()
    criteria = StoppingCriteriaList([EndsWith(free[18:20])])
    target.generate(ids, streamer=plain, stopping_criteria=criteria, **GREEDY)
    target.generate(ids, streamer=streamed, stopping_criteria=criteria, **GREEDY, **ours(pair, gamma))
    assert streamed.pieces == plain.pieces
    assert streamed.ended


def test_a_text_is_read_while_it_is_decoded(pair: QwenPair, ids: Tensor) -> None:
    tokenizer = letters()
    target: Any = pair[0]
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    thread = threading.Thread(
        target=target.generate, args=(ids,), kwargs={"streamer": streamer, **GREEDY, **ours(pair, 3)}
    )
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer.decode(target.generate(ids, **GREEDY)[0, 9:])


def test_an_object_with_the_cache_is_returned_where_it_is_asked_for(pair: QwenPair, ids: Tensor) -> None:
    target: Any = pair[0]
    plain = target.generate(ids, return_dict_in_generate=True, **GREEDY)
    for static in (False, True):
        models = tiny_qwen(0), tiny_qwen(1, like=tiny_qwen(0), noise=0.008)
        prepare(*models, static_cache=static)
        fast: Any = models[0]
        found = fast.generate(ids, return_dict_in_generate=True, **GREEDY, **ours(models, 3))
        assert found.sequences.tolist() == plain.sequences.tolist()
        assert found.cache.get_seq_length() == plain.cache.get_seq_length()
        for mine, theirs in zip(found.cache.layers, plain.cache.layers, strict=True):
            torch.testing.assert_close(mine.keys, theirs.keys)
        later = target.generate(found.sequences, cache=found.cache, **GREEDY)
        assert later.tolist() == target.generate(plain.sequences, **GREEDY).tolist()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_served_is_refused_by_name(name: str, pair: QwenPair, ids: Tensor) -> None:
    asked, fault = REFUSED[name]
    schedule = Scheduled.turns(3)
    policy = Policy.of(schedule, learns=True, cost_ratio={"fp16": 0.3})
    with pytest.raises(ConfigError, match=fault):
        pair[0].generate(ids, **{**GREEDY, **asked}, **{**ours(pair, 3), "policy": policy})
    assert not any(schedule.chosen), "a token was decoded"


def test_images_are_refused_and_texts_of_a_model_with_eyes_are_served() -> None:
    text: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    vision: dict[str, Any] = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
    }
    vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4, "projection_dim": 16}
    torch.manual_seed(0)
    make: Any = LlavaConfig
    config = make(
        text_config=LlamaConfig(**text),
        vision_config=vision,
        image_token_id=39,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    target: Any = LlavaForConditionalGeneration(config).eval()
    draft = LlamaForCausalLM(LlamaConfig(**text)).eval()
    options = {**GREEDY, "pad_token_id": 0}
    images = {"input_ids": torch.tensor([[5, 39, 39, 39, 39, 7]]), "pixel_values": torch.randn(1, 3, 8, 8)}
    mine = ours((target, draft), 3)
    with pytest.raises(ConfigError, match="Expected token ids and no other input of the model, got"):
        target.generate(**images, **options, **mine)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert target.generate(ids, **options, **mine).tolist() == target.generate(ids, **options).tolist()


def test_a_warper_of_the_callers_is_applied(pair: QwenPair, ids: Tensor) -> None:
    """At these settings one token has all the probability, so that a sampled text is the greedy one."""
    target: Any = pair[0]
    greedy = target.generate(ids, **GREEDY).tolist()
    sampled: dict[str, Any] = {"max_new_tokens": 24, "do_sample": True, "top_k": 0}
    for warper in (TemperatureLogitsWarper(1e-4), TopKLogitsWarper(1)):
        options = {
            "max_new_tokens": 24,
            "do_sample": True,
            "top_k": 0,
            "logits_processor": LogitsProcessorList([warper]),
        }
        assert target.generate(ids, **options, **ours(pair, 3)).tolist() == greedy
    for option in ({"top_p": 1e-9}, {"top_p": 0.0}, {"min_p": 1.0}, {"top_k": 1}):
        options = {**sampled, **option}
        assert target.generate(ids, **options, **ours(pair, 3)).tolist() == greedy


def test_several_threads_share_a_target(pair: QwenPair) -> None:
    target: Any = pair[0]
    prompts = [torch.randint(1, VOCAB, (1, 5 + i), generator=torch.Generator().manual_seed(i)) for i in range(6)]
    plain = [target.generate(ids, **GREEDY).tolist() for ids in prompts]
    found: dict[int, Any] = {}

    def run(i: int) -> None:
        found[i] = target.generate(prompts[i], **GREEDY, **ours(pair, i % 4)).tolist()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(6)] == plain


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*prepend a padding mask:UserWarning")
@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_virtual_tokens_are_refused(kind: str, pair: QwenPair, ids: Tensor) -> None:
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(tiny_qwen(0), getattr(peft, kind)(num_virtual_tokens=4, task_type="CAUSAL_LM")).eval()
    with pytest.raises(ConfigError, match="without virtual tokens, got a PEFT adapter of type P"):
        wrapped.generate(input_ids=ids, **GREEDY, **ours(pair, 3))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_that_changes_weights_takes_part(pair: QwenPair, ids: Tensor) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(tiny_qwen(0), config).eval().double()
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    plain = wrapped.generate(input_ids=ids, **GREEDY).tolist()
    assert plain != pair[0].generate(ids, **GREEDY).tolist()
    assert wrapped.generate(input_ids=ids, **GREEDY, **ours(pair, 3)).tolist() == plain
