# SPDX-License-Identifier: Apache-2.0
"""A sequence in buffers that never move, so that CUDA graphs can replay whole passes.

A pass of a few tokens through a small model is hundreds of kernels, each shorter than its launch. Captured once per
width (`speckv.models.graphs`), it is one launch: the model, the signals and the likeliest token. Where the tokens go
and what they may see is computed on the device from one number, the position; that is all that changes between replays
beside the ids.

Everything but the capture runs on a CPU too, where the tests compare it with the growing cache.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from speckv.models.attention import without_plans
from speckv.models.cache import cache_keyword, exported
from speckv.models.graphs import PassGraphs
from speckv.models.signals import Scores
from speckv.models.transfer import token_tensor

if TYPE_CHECKING:
    from speckv.models.causal import CausalModel

WIDEST_GRAPH = 20
"""Widest pass that is captured: a draft of 16, the newest token, and some to catch up; prompts are wider."""

WIDEST_PASS = 2048
"""Tokens of a prompt that are read at once: each sees its own line of the mask, which a long prompt would make huge."""

FIRST_CAPACITY = 4096
"""Tokens that buffers hold at first, where the model's context allows it; they double when they must."""

LEAST_VISIBLE = 256
"""Attention runs over a power of two of slots, at least these; the ones behind the text are masked."""


class _FixedLayer(DynamicLayer):
    """Keys and values of one layer, written at the slots that the room names."""

    def __init__(self, room: "_Room") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room: _Room = weakref.proxy(room)  # which holds this: no cycle, so that memory is free at once

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes states of shape [1, heads, tokens, dim] and returns the visible slots."""
        del args, kwargs
        self.keys = _written(self.keys, key_states, self._room)
        self.values = _written(self.values, value_states, self._room)
        self.is_initialized = True
        visible = self._room.visible
        return self.keys[:, :, :visible], self.values[:, :, :visible]

    def blank(self) -> None:
        """Overwrites everything, where it is: graphs point there."""
        for held in (self.keys, self.values):
            if held is not None:
                held.zero_()


def _written(held: Tensor | None, states: Tensor, room: "_Room") -> Tensor:
    if held is None or held.shape[2] < room.capacity:
        # Zeros, not whatever was in memory: a masked slot's value is still multiplied by zero.
        grown = states.new_zeros((1, states.shape[1], room.capacity, states.shape[3]))
        if held is not None:
            grown[:, :, : held.shape[2]] = held
        held = grown
    return held.index_copy_(2, room.slots, states)


class _Room:
    """The buffers of one sequence at a time, and the passes captured on them.

    Attributes:
        failed: Whether a pass raised: the buffers may be of several sizes then, and are not taken again.
    """

    def __init__(self, model: "CausalModel") -> None:
        self._hf, self._device = model.hf, model.device
        self._limit = model.context_limit
        self.failed = False
        self.capacity = min(FIRST_CAPACITY, model.context_limit)
        self.visible = 0
        self.slots = torch.zeros(0, dtype=torch.long, device=self._device)
        self._position = torch.zeros(1, dtype=torch.long, device=self._device)
        self._columns = torch.arange(self.capacity, device=self._device)
        cache = DynamicCache(config=model.hf.config)
        self._layers = [_FixedLayer(self) for _ in cache.layers]
        layers: list[Any] = [*self._layers]
        cache.layers = layers
        self.cache = cache
        self._cache_argument: dict[str, Any] = {cache_keyword(model.hf): cache}
        self._graphs = PassGraphs(model.graph_faults) if model.replays_graphs else None

    @torch.inference_mode()
    def blank(self) -> None:
        """Leaves nothing of the last sequence: a NaN would outlive it behind any mask."""
        for layer in self._layers:
            layer.blank()

    @torch.inference_mode()
    def run(self, ids: Tensor, position: int, num_logits: int, *, once: bool = False) -> Scores:
        """One pass of ids of shape [tokens], the first of which stands at `position`; not captured if run `once`."""
        visible = self._visible(position + len(ids))
        if visible > self.capacity:
            self.capacity = visible
            self._columns = torch.arange(visible, device=self._device)
            if self._graphs is not None:
                self._graphs.clear()  # they write to the buffers that are left behind
        self.visible = visible
        self._position.fill_(position)
        if self._graphs is None or once or len(ids) > WIDEST_GRAPH:
            return self._pass(ids, num_logits)
        return self._graphs.run((len(ids), num_logits, visible), lambda static: self._pass(static, num_logits), ids)

    def capture_ahead(self, longest: int, widths: Sequence[int], *, all_logits: bool) -> None:
        """Captures passes; see `StaticSequence.capture_ahead`."""
        for visible in self._sizes(longest):
            for width in sorted((width for width in widths if width < visible), reverse=True):
                if self._graphs is None or self._graphs.faulty:
                    return
                ids = torch.zeros(width, dtype=torch.long, device=self._device)
                self.run(ids, visible - width, width if all_logits else 1)

    def _visible(self, length: int) -> int:
        """Slots that attention runs over in a pass that ends at a length."""
        return min(max(LEAST_VISIBLE, 1 << (length - 1).bit_length()), self._limit)

    def _sizes(self, longest: int) -> Iterator[int]:
        """All that `_visible` can be up to a length, the largest first, so that buffers grow once."""
        size = self._visible(longest)
        yield size
        while size > self._visible(1):
            size = self._visible((size + 1) // 2)
            yield size

    def _pass(self, ids: Tensor, num_logits: int) -> Scores:
        self.slots = self._position + self._columns[: len(ids)]
        mask = self._columns[None, : self.visible] <= self.slots[:, None]
        with without_plans(self._device):
            output = self._hf(
                input_ids=ids[None],
                position_ids=self.slots[None],
                attention_mask=mask[None, None],
                use_cache=True,
                logits_to_keep=num_logits,
                **self._cache_argument,
            )
        return Scores.of(output.logits[0])


class StaticSequence:
    """A token sequence in fixed buffers; drop-in for `CachedSequence`.

    The buffers belong to the model and are taken again once a sequence is gone, with the graphs captured on them.
    """

    def __init__(self, model: "CausalModel") -> None:
        self._model = model
        try:
            self._room: _Room = model.spare_rooms.pop()
        except IndexError:  # none, or another thread took the last one
            self._room = _Room(model)
        else:
            self._room.blank()
        weakref.finalize(self, _give_back, self._room, model.spare_rooms)
        self.length = 0

    def extend(self, tokens: Sequence[int] | Tensor, *, num_logits: int | None = None) -> Tensor:
        """Appends tokens and returns logits, the caller's own; see `CachedSequence.extend`."""
        return self.score(tokens, num_logits=num_logits).logits.clone()

    def score(self, tokens: Sequence[int] | Tensor, *, num_logits: int | None = None) -> Scores:
        """Appends tokens and scores what follows the last `num_logits` of them, all of them by default.

        The logits are valid until the sequence's next pass; signals and best tokens for good.

        Raises:
            BudgetError: if the model's context would overflow.
        """
        ids = token_tensor(tokens, self._model.device)
        wanted = len(ids) if num_logits is None else num_logits
        self._model.require_context(self.length + len(ids))
        prompt = self.length == 0
        with self._or_failed():
            while len(ids) > max(wanted, WIDEST_PASS):
                piece = ids[: min(WIDEST_PASS, len(ids) - wanted)]
                self._room.run(piece, self.length, 1, once=True)
                self.length += len(piece)
                ids = ids[len(piece) :]
            scores = self._room.run(ids, self.length, wanted, once=prompt)
        self.length += len(ids)
        return scores

    def exported(self) -> DynamicCache:
        """A copy of the cache in transformers' own layers, for a caller that goes on from it."""
        return exported(self._model.hf, self._room.cache, self.length)

    def capture_ahead(self, longest: int, widths: Sequence[int], *, all_logits: bool) -> None:
        """Captures the passes of some widths that texts up to a length can ask for; only on CUDA.

        The sequence must be empty.

        Args:
            longest: Text in tokens.
            widths: Of passes, in tokens.
            all_logits: Whether passes score every token, as verification does, or the last one, as drafting does.
        """
        with self._or_failed():
            self._room.capture_ahead(longest, widths, all_logits=all_logits)

    @contextmanager
    def _or_failed(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._room.failed = True
            raise

    def truncate(self, length: int) -> None:
        """Forgets every token past `length`: its slots are masked, and written over later."""
        self.length = min(self.length, length)


def _give_back(room: _Room, spare: list[Any]) -> None:
    if not room.failed:
        spare.append(room)
