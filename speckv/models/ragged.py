# SPDX-License-Identifier: Apache-2.0
"""Many sequences in one model, each of its own length: for decoding batches and for recording.

Every position of a row has a slot in one buffer a layer. Cutting a row back moves nothing: the mask hides what is past
the end until it is overwritten. Sliding windows are masks over the same buffers.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from speckv.errors import ModelError
from speckv.models.cache import BufferLayer, Slots, cache_keyword, require_rollback, window_sizes
from speckv.models.causal import CausalModel
from speckv.models.device import to_device, token_tensor, without_plans
from speckv.models.parts import decoder_of, scoring_of
from speckv.models.processors import Processors

SPARE_TOKENS = 64
ALIGNMENT = 8
"""Passes read a multiple of this many slots: CUDA's attention kernels copy masks of other widths."""

TOKENS_AT_ONCE = 4096
"""Most tokens of one pass, padding included."""

LOGITS_ROWS = 128
"""Most hidden states to score at once when recording; 128 x 152k float32 logits are 78 MB."""


class RaggedRows:
    """Rows of cached tokens inside one model, extended and cut back independently; see `require_batches`."""

    def __init__(self, model: CausalModel) -> None:
        require_batches(model)
        self.model = model
        self._decoder = decoder_of(model.hf)
        self._scores = scoring_of(model.hf)
        self._windows = window_sizes(model.hf)
        self._begin()

    def _begin(self) -> None:
        cache = DynamicCache(config=self.model.hf.config)
        layers: list[Any] = [BufferLayer() if _holds_tokens(layer) else layer for layer in cache.layers]  # type: ignore[no-untyped-call]
        cache.layers = layers
        self._layers: list[BufferLayer] = [layer for layer in layers if isinstance(layer, BufferLayer)]
        self._cache: dict[str, Any] = {cache_keyword(self._decoder): cache}
        self._lengths: list[int] = []
        self._num_rows = self._capacity = 0

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row."""
        return self._lengths

    def add(self, count: int) -> None:
        """Adds empty rows behind the others."""
        self._lengths += [0] * count
        self._num_rows = max(self._num_rows, len(self._lengths))

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        """Removes a row; the last one takes its place."""
        last = len(self._lengths) - 1
        if row != last and self._lengths[last]:  # an empty row may have no slots in the buffers yet
            for layer in self._layers:
                layer.move(last, row, self._lengths[last])
        self._lengths[row] = self._lengths[last]
        self._lengths.pop()

    def truncate(self, row: int, length: int) -> None:
        """Removes every token of a row past `length`."""
        self._lengths[row] = min(self._lengths[row], length)

    @torch.inference_mode()
    def extend(self, rows: Sequence[int], tokens: Tensor, counts: Sequence[int], *, last_only: bool = False) -> Tensor:
        """Appends tokens to some rows in one pass; scores each token or each row's last.

        Args:
            rows: Each at most once; fastest if they are the first ones in order.
            tokens: Ids [rows, width] on the device; past a row's count is padding.
            counts: Tokens of each row, 1 to width.

        Returns:
            Logits of shape [sum(counts), vocab], or [rows, vocab]: row after row, without padding.

        Raises:
            BudgetError: if a row would outgrow the model's context.
        """
        parts = _parts(len(rows), tokens.shape[1])
        scored = [
            self._scores(_scored(self._pass(rows[p], tokens[p], counts[p]), counts[p], last_only=last_only))
            for p in parts
        ]
        return scored[0] if len(scored) == 1 else torch.cat(scored)

    # -- recording: all rows advance together, and hidden states are scored as far as they are needed ---------------

    @torch.inference_mode()
    def read(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Adds rows of whole texts; returns hidden states [texts, longest, hidden], undefined past an end."""
        first, counts = len(self._lengths), [len(text) for text in texts]
        self.add(len(texts))
        ids = torch.tensor([[*text, *[0] * (max(counts) - len(text))] for text in texts])
        return self._read(range(first, first + len(texts)), to_device(ids, self.model.device), counts)

    @torch.inference_mode()
    def advance(self, tokens: Tensor) -> Tensor:
        """Appends one token to every row, ids [rows]; returns hidden states [rows, hidden]."""
        return self._read(range(len(tokens)), tokens[:, None], [1] * len(tokens))[:, 0]

    @torch.inference_mode()
    def score(self, hidden: Tensor) -> Tensor:
        """Float32 logits of hidden states; pass at most `LOGITS_ROWS` to limit memory."""
        return self._scores(hidden).float()

    @torch.inference_mode()
    def copy_of(self, rows: Sequence[int], lengths: Sequence[int] | None = None) -> "RaggedRows":
        """Copies rows, each cut to a length of at least 1, by default whole; a row may be copied many times."""
        lengths = [self._lengths[row] for row in rows] if lengths is None else list(lengths)
        copied = copy.copy(self)  # of the same model, which is not checked and taken apart again
        copied._begin()
        copied.add(len(rows))
        copied._lengths, copied._capacity = lengths, max(lengths)
        picked = token_tensor(rows, self.model.device)
        for source, target in zip(self._layers, copied._layers, strict=True):
            target.is_initialized = True
            target.keys = source.keys[:, :, : copied._capacity].index_select(0, picked)
            target.values = source.values[:, :, : copied._capacity].index_select(0, picked)
        return copied

    def _read(self, rows: Sequence[int], tokens: Tensor, counts: Sequence[int]) -> Tensor:
        return torch.cat([self._pass(rows[p], tokens[p], counts[p]) for p in _parts(len(rows), tokens.shape[1])])

    # -- a pass -----------------------------------------------------------------------------------------------------

    def _pass(self, rows: Sequence[int], tokens: Tensor, counts: Sequence[int]) -> Tensor:
        device, width = self.model.device, tokens.shape[1]
        starts = [self._lengths[row] for row in rows]
        self._reserve(starts, counts, width)
        positions = token_tensor(starts, device)[:, None] + torch.arange(width, device=device)
        slots = Slots(
            num_rows=self._num_rows,
            capacity=self._capacity,
            rows=token_tensor(rows, device),
            positions=positions,
            span=_aligned(max(starts) + width),
            leading=list(rows) == list(range(len(rows))),
        )
        for layer in self._layers:
            layer.slots = slots
        with without_plans(device):
            output = self._decoder(
                input_ids=tokens,
                attention_mask=self._masks(positions, slots.span),
                position_ids=positions.clamp(max=self.model.context_limit - 1),  # of padding alone
                use_cache=True,
                **self._cache,
            )
        for row, start, count in zip(rows, starts, counts, strict=True):
            self._lengths[row] = start + count
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _reserve(self, starts: Sequence[int], counts: Sequence[int], width: int) -> None:
        longest = max(start + count for start, count in zip(starts, counts, strict=True))
        self.model.require_context(longest)
        end = max(starts) + width
        if end > self._capacity:
            self._capacity = _aligned(end + max(SPARE_TOKENS, end // 4))

    def _masks(self, positions: Tensor, span: int) -> Tensor | dict[str, Tensor]:
        """Shape [batch, 1, width, span], which transformers takes as is; by kind of layer where there are two."""
        kinds = set(self._windows)
        by_window = {window: self._mask(positions, span, window) for window in kinds}
        if len(kinds) == 1:
            return by_window.popitem()[1]
        return {"sliding_attention" if window else "full_attention": mask for window, mask in by_window.items()}

    def _mask(self, positions: Tensor, span: int, window: int | None) -> Tensor:
        dtype = self.model.dtype
        slots, places = torch.arange(span, device=positions.device), positions[:, None, :, None]
        hidden = slots > places
        if window is not None:
            hidden |= slots <= places - window
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)


@dataclass(frozen=True, slots=True)
class RaggedModel:
    """A model that `BatchEngine` drives."""

    model: CausalModel

    @property
    def context_limit(self) -> int:
        """In tokens."""
        return self.model.context_limit

    @property
    def vocab_size(self) -> int:
        """Tokens it scores."""
        return self.model.vocab_size

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.model.device

    def request_processors(self, prompt: Sequence[int], max_new_tokens: int) -> Processors | None:
        """See `CausalModel.request_processors`."""
        return self.model.request_processors(prompt, max_new_tokens)

    def rows(self) -> RaggedRows:
        """Starts with no rows; ModelError if the model keeps another kind of cache."""
        return RaggedRows(self.model)


def require_batches(model: CausalModel) -> None:
    """Raises ModelError if cache or positions do not allow rows of unequal length in one pass."""
    require_rollback(model.hf, model.name)
    config: Any = model.hf.config.get_text_config()
    layers = DynamicCache(config=model.hf.config).layers
    faults = sorted({type(layer).__name__ for layer in layers if not _holds_tokens(layer)})
    if len(set(window_sizes(model.hf)) - {None}) > 1:
        faults.append("windows of several sizes")
    if getattr(config, "attention_chunk_size", None):
        faults.append("chunked attention")
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        faults.append("ALiBi positions")
    if faults:
        raise ModelError(
            f"{model.name}: expected layers that attend to all tokens or to one sliding window, got "
            f"{', '.join(faults)}. Decode one request at a time with Engine."
        )


def _holds_tokens(layer: object) -> bool:
    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)


def _parts(num_rows: int, width: int) -> list[slice]:
    share = max(1, TOKENS_AT_ONCE // width)
    return [slice(begin, begin + share) for begin in range(0, num_rows, share)]


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def _scored(hidden: Tensor, counts: Sequence[int], *, last_only: bool) -> Tensor:
    width, flat = hidden.shape[1], hidden.flatten(0, 1)
    if last_only:
        picks = [row * width + count - 1 for row, count in enumerate(counts)]
    else:
        picks = [row * width + place for row, count in enumerate(counts) for place in range(count)]
    return flat if len(picks) == len(flat) else flat[token_tensor(picks, hidden.device)]
