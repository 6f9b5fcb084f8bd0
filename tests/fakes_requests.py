# SPDX-License-Identifier: Apache-2.0
"""Calls of `generate`: settings, criteria and processors that people use, and what cannot be served."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.stopping_criteria import EosTokenCriteria

from tests.fakes import LETTERS, VOCAB, tiny_qwen

PROMPT_LENGTH = 9

QwenPair = tuple[Qwen2ForCausalLM, Qwen2ForCausalLM]
"""Target and draft."""


def prompt(seed: int, length: int = PROMPT_LENGTH) -> Tensor:
    return torch.randint(1, VOCAB, (1, length), generator=torch.Generator().manual_seed(seed))


def letters() -> Any:
    words = {letter: i for i, letter in enumerate(LETTERS)}
    make: Any = Qwen2Tokenizer
    return make(vocab=words, merges=[], unk_token="a", eos_token=None, pad_token=None, bos_token=None)


class EndsWith(StoppingCriteria):
    def __init__(self, tail: list[int]) -> None:
        self.tail = tail

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        del scores
        return torch.tensor([input_ids[0, -len(self.tail) :].tolist() == self.tail])


class AfterCalls(StoppingCriteria):
    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        del input_ids, scores
        self.left -= 1
        return torch.tensor([self.left <= 0])


class ByCall(LogitsProcessor):
    """A bias that changes at every call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        del input_ids
        self.calls += 1
        scores += 3.0 * (torch.arange(scores.shape[-1]) % 7 == self.calls % 7)
        return scores


SERVED: dict[str, Callable[[list[int]], dict[str, Any]]] = {
    "two given tokens": lambda free: {"stopping_criteria": StoppingCriteriaList([EndsWith(free[18:20])])},
    "a number of calls": lambda _: {"stopping_criteria": StoppingCriteriaList([AfterCalls(11)])},
    "a shorter text": lambda _: {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(15)])},
    "a longer text": lambda _: {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(41)])},
    "an end of text": lambda free: {"stopping_criteria": StoppingCriteriaList([EosTokenCriteria(free[14])])},
    "several ends": lambda free: {"eos_token_id": [free[11], free[15]], "pad_token_id": 0},
    "a bias by call": lambda _: {"logits_processor": LogitsProcessorList([ByCall()])},
    "penalties": lambda _: {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    "least length": lambda free: {"min_new_tokens": 9, "eos_token_id": free[11], "pad_token_id": 0},
    "allowed tokens": lambda _: {"prefix_allowed_tokens_fn": lambda _, text: [int(text[-1]) ^ 1, 3, 5]},
    "bad words": lambda free: {"bad_words_ids": [[free[12]], [free[13], free[14]]]},
    "no time limit": lambda _: {"max_time": 1e6},
    "no cache": lambda _: {"use_cache": False},
    "counted positions": lambda _: {"position_ids": torch.arange(9)[None]},
}
"""Name -> options of a call, with fresh state, given the greedy text (of 24 new tokens) without them."""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "scores": ({"return_dict_in_generate": True, "output_scores": True}, "output_scores"),
    "logits": ({"return_dict_in_generate": True, "output_logits": True}, "output_logits"),
    "hidden states": ({"return_dict_in_generate": True, "output_hidden_states": True}, "output_hidden_states"),
    "attentions": ({"return_dict_in_generate": True, "output_attentions": True}, "output_attentions"),
    "positions": ({"position_ids": torch.arange(9)[None] * 3}, "position_ids"),
    "a mask": ({"attention_mask": torch.tensor([[0, 0] + [1] * 7])}, "attention mask"),
    "embeddings": ({"inputs_embeds": torch.zeros(1, 9, 32, dtype=torch.float64)}, "inputs_embeds"),
    "several texts": ({"num_return_sequences": 2, "do_sample": True}, "batch of 2"),
    "beams": ({"num_beams": 3}, "batch of 3"),
    "guidance": ({"guidance_scale": 1.5}, "guidance_scale"),
    "a static cache": ({"cache_implementation": "static"}, "StaticCache"),
    "another name for the draft": ({"assistant_model": tiny_qwen(2)}, "draft_model"),
    "synced GPUs": ({"synced_gpus": True}, "synced_gpus"),
}
"""Name -> options that `custom_generate` refuses, and a word of the error."""
