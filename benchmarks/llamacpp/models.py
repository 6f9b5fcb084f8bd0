# SPDX-License-Identifier: Apache-2.0
"""The pair in llama-cpp-python, its prompts, and what it ran on."""

import argparse
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# libgomp reads it when it is loaded: threads that wait busily take the cores from those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import llama_cpp
import numpy as np
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from speckv.cores import usable_cores
from speckv.profiling.machine import processor

PAIR = "Qwen2.5-Coder-1.5B-Instruct with 0.5B draft, Q4_K_M"
FILES = tuple(f"qwen2.5-coder-{size}-instruct-q4_k_m.gguf" for size in ("1.5b", "0.5b"))
CACHES = {"f16": None, "q8_0": 8}
"""Types of the cache -> what `Llama` takes: llama.cpp's own number, or None for its default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How models are loaded.

    Attributes:
        target: GGUF file.
        draft: GGUF file.
        context: Tokens that both have room for, a multiple of 256.
        threads: Of each.
        cache: Type of the target's cache, of `CACHES`.
    """

    target: Path
    draft: Path
    context: int
    threads: int
    cache: str

    @staticmethod
    def of(options: argparse.Namespace) -> "Setting":
        """Reads the command line; see `add_arguments`."""
        files = [options.weights / name for name in FILES]
        return Setting(
            target=options.target or files[0],
            draft=options.draft or files[1],
            context=options.context,
            threads=options.threads,
            cache=options.cache,
        )

    def load_target(self, **options: Any) -> Any:
        """The target; give `logits_all=True` where it is to verify drafts."""
        cache = CACHES[self.cache]
        return self._load(self.target, type_k=cache, type_v=cache, **options)

    def load_draft(self) -> Any:
        """The draft."""
        return self._load(self.draft)

    def _load(self, path: Path, **options: Any) -> Any:
        return llama_cpp.Llama(
            str(path),
            n_ctx=self.context,
            n_threads=self.threads,
            n_threads_batch=self.threads,
            flash_attn=True,
            verbose=False,
            **options,
        )

    @property
    def pair(self) -> str:
        """The models' names."""
        names = (self.target.name, self.draft.name)
        return PAIR if names == FILES else f"{names[0]} with {names[1]}"

    def kernel(self, path: Path, cache: str) -> str:
        """What multiplies a model's weights, in words."""
        return (
            f"llama.cpp of llama-cpp-python {llama_cpp.__version__}, CPU, {path.name}, flash attention, "
            f"{cache} cache, {self.threads} threads"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `Setting.of` reads."""
    parser.add_argument("--weights", type=Path, default=Path(), help="folder with the Qwen pair's GGUF files")
    parser.add_argument("--target", type=Path, help="another target's GGUF file")
    parser.add_argument("--draft", type=Path, help="another draft's GGUF file")
    parser.add_argument("--context", type=int, default=1280, help="tokens of both contexts (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--cache", choices=list(CACHES), default="f16", help="type of the target's cache")


def encode(llama: Any, prompt: str) -> list[int]:
    """Token ids of a prompt as a user's turn, by the template in the model's file."""
    template = llama.metadata.get("tokenizer.chat_template")
    if template is None:
        return [int(token) for token in llama.tokenize(prompt.encode())]
    bos, eos = (llama.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    words = [llama.detokenize([int(token)], special=True).decode() if token else "" for token in (bos, eos)]
    formatter = Jinja2ChatFormatter(template=template, bos_token=words[0], eos_token=words[1])
    text = formatter(messages=[{"role": "user", "content": prompt}]).prompt
    return [int(token) for token in llama.tokenize(text.encode(), add_bos=False, special=True)]


def ends(llama: Any, token: int) -> bool:
    """Whether a token ends a text."""
    return bool(llama_cpp.llama_vocab_is_eog(llama_cpp.llama_model_get_vocab(llama.model), token))


def machine(setting: Setting) -> dict[str, str]:
    """What it ran on, as cost tables and results say it."""
    return {
        "processor": processor(),
        "cores": str(usable_cores()),
        "threads": str(setting.threads),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "accelerator": "none",
        "version_llama_cpp_python": llama_cpp.__version__,
        "version_numpy": np.__version__,
        "llama_cpp_features": llama_cpp.llama_print_system_info().decode().strip(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
    }
