# SPDX-License-Identifier: Apache-2.0
"""A model's own `generation_config`: settings that shape its scores, and tokens that end its texts.

All commands decode as `model.generate(do_sample=False)`; sampling is set by SpecKV's `sampling` alone.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode

from speckv.errors import ConfigError
from speckv.models.processors import Processors

_WITHOUT_PROCESSOR = ("stop_strings", "token_healing", "max_time", "prompt_lookup_num_tokens", "assistant_early_exit")
"""Settings that `generate` applies without a processor of scores; they are refused."""

_SHAPING = (
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "min_length",
    "min_new_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "bad_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
    "remove_invalid_values",
    "renormalize_logits",
    "watermarking_config",
)


class GenerationDefaults:
    """The effect of a model's `generation_config` on its scores; ConfigError for settings such as beams."""

    def __init__(self, model: PreTrainedModel, name: str) -> None:
        self._model: Any = model
        config = self._prepared(1)
        unserved = [key for key in _WITHOUT_PROCESSOR if getattr(config, key, None)]
        unserved += ["guidance_scale"] if config.guidance_scale not in (None, 1) else []
        mode = config.get_generation_mode()
        if mode is not GenerationMode.GREEDY_SEARCH:
            unserved.append(f"settings of {mode.value}")
        if unserved:
            raise ConfigError(
                f"Expected a generation_config that greedy decoding can follow, got {', '.join(unserved)} in that of "
                f"{name}. Remove them from its generation_config.json."
            )
        self.settings = {key: value for key in _SHAPING if (value := _set(config, key)) is not None}

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a text in `generate`."""
        return token_ids(self._model.generation_config.eos_token_id)

    def processors(self, prompt: Sequence[int], max_new_tokens: int) -> Processors | None:
        """Processors of one request, as in `generate`; None if scores stay as they are."""
        if not self.settings:
            return None
        device = self._model.device
        config = self._prepared(len(prompt) + max_new_tokens)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = self._model._get_logits_processor(
                generation_config=config,
                input_ids_seq_length=len(prompt),
                encoder_input_ids=torch.tensor([list(prompt)], device=device),
                device=device,
                model_kwargs={},
            )
        return Processors.of(found)

    def _prepared(self, max_length: int) -> GenerationConfig:
        config, _ = self._model._prepare_generation_config(None, do_sample=False)
        self._model._prepare_special_tokens(config, True, device=self._model.device)
        config.max_length = max_length
        found: GenerationConfig = config
        return found


def token_ids(value: object) -> frozenset[int]:
    """One token id, several, or none, as a set.

    >>> sorted(token_ids([2, 3])), sorted(token_ids(2)), sorted(token_ids(None))
    ([2, 3], [2], [])
    """
    if value is None:
        return frozenset()
    if isinstance(value, torch.Tensor):
        value = value.flatten().tolist()
    return frozenset([value] if isinstance(value, int) else map(int, value))  # type: ignore[call-overload]


def _set(config: GenerationConfig, key: str) -> object:
    value = getattr(config, key, None)
    without_effect = {"repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0}
    return None if not value or value == without_effect.get(key) else value
