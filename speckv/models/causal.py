# SPDX-License-Identifier: Apache-2.0
"""One causal language model and its cached sequences."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.utils.hub import cached_file

from speckv.errors import BudgetError
from speckv.models.cache import cache_keyword, exported, growing_cache, require_rollback
from speckv.models.defaults import GenerationDefaults
from speckv.models.device import token_tensor, without_plans
from speckv.models.parts import with_modules
from speckv.models.processors import Processors
from speckv.models.signals import ScoredTokens
from speckv.models.static import StaticSequence


class CachedSequence(ScoredTokens):
    """A token sequence inside one model, with its key-value cache."""

    def __init__(self, model: "CausalModel") -> None:
        require_rollback(model.hf, model.name)
        self._model = model
        self._cache = growing_cache(model.hf)
        self._cache_argument: dict[str, Any] = {cache_keyword(model.hf): self._cache}
        self.length = 0

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int] | Tensor, *, num_logits: int | None = None) -> Tensor:
        """Appends tokens; logits [num_logits, vocab] of the last ones, by default all. BudgetError past the context."""
        self._model.require_context(self.length + len(tokens))
        ids = token_tensor(tokens, self._model.device)[None]
        wanted = num_logits if num_logits is not None else len(tokens)
        with without_plans(self._model.device):
            output = self._model.hf(input_ids=ids, use_cache=True, logits_to_keep=wanted, **self._cache_argument)
        self.length += len(tokens)
        logits: Tensor = output.logits[0]
        return logits

    def exported(self) -> DynamicCache:
        """A copy of the cache in transformers' own layers."""
        return exported(self._model.hf, self._cache, self.length)

    def truncate(self, length: int) -> None:
        """Removes every token past `length`."""
        surplus = self.length - length
        if surplus > 0:
            self._cache.crop(-surplus)  # transformers 5 takes a count to remove; positive lengths raise
            self.length = length


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalModel:
    """A loaded model.

    Attributes:
        name: Hub id, folder or file it came from.
        compression: "fp16" (unquantised), "int8", "nf4", or a registered further kind.
        context_limit: In tokens.
        source: Folder with its weights, if on disk.
        static: Whether sequences use fixed buffers (`speckv.models.static`), as CUDA graphs need.
        captures_graphs: Whether its kernels can be captured, if static and on CUDA.
        graph_faults: Errors of captures; after one, passes run kernel by kernel.
        defaults: Settings of the `generation_config` that shape scores; None if the caller applies them.
    """

    name: str
    hf: PreTrainedModel
    compression: str
    dtype: torch.dtype
    device: torch.device
    vocab_size: int
    context_limit: int
    source: Path | None = None
    static: bool = False
    captures_graphs: bool = True
    spare_buffers: list[Any] = field(default_factory=list, repr=False)
    graph_faults: list[str] = field(default_factory=list, repr=False)
    defaults: GenerationDefaults | None = None
    _digest: dict[str, str] = field(default_factory=dict)

    @property
    def replays_graphs(self) -> bool:
        """Whether its passes are captured as CUDA graphs."""
        return self.static and self.captures_graphs and self.device.type == "cuda"

    def sequence(self) -> CachedSequence | StaticSequence:
        """Starts an empty cached sequence."""
        return StaticSequence(self) if self.static else CachedSequence(self)

    def captured(self, longest: int, widths: Sequence[int], *, all_logits: bool) -> StaticSequence | None:
        """An empty sequence with passes captured as by `StaticSequence.capture_ahead`; None if none are captured."""
        if not self.replays_graphs:
            return None
        sequence = StaticSequence(self)
        sequence.capture_ahead(longest, widths, all_logits=all_logits)
        return sequence

    def sharing(self, hf: PreTrainedModel) -> "CausalModel":
        """The same model around another module with the same weights, with buffers and graphs of its own."""
        return replace(self, hf=hf, spare_buffers=[], graph_faults=[], _digest={})

    def request_processors(self, prompt: Sequence[int], max_new_tokens: int) -> Processors | None:
        """Logits processors of one request by the model's own defaults, if any."""
        return self.defaults.processors(prompt, max_new_tokens) if self.defaults else None

    def require_context(self, length: int) -> None:
        """Raises BudgetError if `length` tokens would overflow the context."""
        if length > self.context_limit:
            raise BudgetError(
                f"{self.name}: expected at most {self.context_limit} tokens of context, got {length}. "
                "Shorten the prompt or the token budget."
            )

    def sha256(self) -> str:
        """Hash of the weight files, "" if not on disk; computed once (seconds a gigabyte)."""
        if "sha256" not in self._digest:
            self._digest["sha256"] = weights_sha256(self.source or _hub_snapshot(self.name))
        return self._digest["sha256"]


def weights_sha256(folder: Path | None) -> str:
    """Hash of a folder's weight files, safetensors if there are any, in order of names; "" for none."""
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        files = sorted(folder.glob(pattern)) if folder else []
        if files:
            digest = hashlib.sha256()
            for path in files:
                with path.open("rb") as stream:
                    while block := stream.read(1 << 24):
                        digest.update(block)
            return digest.hexdigest()
    return ""


def _hub_snapshot(name: str) -> Path | None:
    try:
        found = cached_file(name, "config.json", local_files_only=True)
    except (OSError, ValueError):
        return None
    return Path(found).parent if found else None


def with_vocabulary(draft: CausalModel, vocab_size: int) -> CausalModel:
    """Fits a draft with the target's tokenizer to the target's `vocab_size` rows of scores; weights are shared.

    Models of one family pad their vocabularies differently: Qwen2.5 7B scores 152,064 rows, 0.5B 151,936. Rows that
    only the target has score minus infinity, rows that only the draft has are left out. A token without an embedding in
    the draft is read as its last one, which costs at most acceptance.
    """
    if draft.vocab_size == vocab_size:
        return draft
    hf: Any = draft.hf
    inner, head = hf.get_input_embeddings(), hf.get_output_embeddings()
    replacements: dict[nn.Module, nn.Module] = {head: _FittedHead(head, vocab_size)}
    if inner.weight.shape[0] < vocab_size:
        replacements[inner] = _ClampedEmbedding(inner, vocab_size)
    return replace(draft.sharing(with_modules(hf, replacements)), vocab_size=vocab_size)


class _Fitted(nn.Module):
    def __init__(self, inner: nn.Module, vocab_size: int) -> None:
        super().__init__()
        self.inner, self._vocab_size = inner, vocab_size

    @property
    def weight(self) -> Any:
        return self.inner.weight


class _ClampedEmbedding(_Fitted):
    def forward(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.inner(ids.clamp(max=self.weight.shape[0] - 1))
        return embedded


class _FittedHead(_Fitted):
    def forward(self, hidden: Tensor) -> Tensor:
        scores: Tensor = self.inner(hidden)[..., : self._vocab_size]
        missing = self._vocab_size - scores.shape[-1]
        if missing > 0:
            scores = torch.cat([scores, scores.new_full((*scores.shape[:-1], missing), -torch.inf)], dim=-1)
        return scores
