# SPDX-License-Identifier: Apache-2.0
"""A sequence in buffers that never move, so that CUDA graphs can replay whole passes.

A pass of a few tokens through a small model is hundreds of kernels, each shorter than its launch. Captured once per
width, it is one launch: the model, the signals and the likeliest token. Where the tokens go and what they may see is
computed on the device from one number, the position; that is all that changes between replays beside the ids.

Everything but the capture runs on a CPU too, where the tests compare it with the growing cache.
"""

import logging
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from speckv.models.cache import cache_keyword
from speckv.models.signals import Scores
from speckv.models.transfer import token_tensor

if TYPE_CHECKING:
    from speckv.models.causal import CausalModel

logger = logging.getLogger(__name__)
WIDEST_GRAPH = 20
"""Widest pass that is captured: a draft of 16, the newest token, and some to catch up; prompts are wider."""

FIRST_CAPACITY = 4096
"""Tokens that buffers hold at first, where the model's context allows it; they double when they must."""

LEAST_VISIBLE = 256
"""Attention runs over a power of two of slots, at least these; the ones behind the text are masked."""


class _FixedLayer(DynamicLayer):
    """Keys and values of one layer, written at the slots that the room names."""

    def __init__(self, room: "_Room") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room = room

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


def _written(held: Tensor | None, states: Tensor, room: "_Room") -> Tensor:
    if held is None or held.shape[2] < room.capacity:
        # Zeros, not whatever was in memory: a masked slot's value is still multiplied by zero.
        grown = states.new_zeros((1, states.shape[1], room.capacity, states.shape[3]))
        if held is not None:
            grown[:, :, : held.shape[2]] = held
        held = grown
    return held.index_copy_(2, room.slots, states)


class _Room:
    """The buffers of one sequence at a time, and the passes captured on them."""

    def __init__(self, model: "CausalModel") -> None:
        self._hf, self._device = model.hf, model.device
        self._limit = model.context_limit
        self.capacity = min(FIRST_CAPACITY, model.context_limit)
        self.visible = 0
        self.slots = torch.zeros(0, dtype=torch.long, device=self._device)
        self._position = torch.zeros(1, dtype=torch.long, device=self._device)
        self._columns = torch.arange(self.capacity, device=self._device)
        cache = DynamicCache(config=model.hf.config)
        layers: list[Any] = [_FixedLayer(self) for _ in cache.layers]
        cache.layers = layers
        self._cache_argument: dict[str, Any] = {cache_keyword(model.hf): cache}
        self._captures = model.device.type == "cuda" and model.captures_graphs
        self._graphs: dict[tuple[int, int, int], _Graph] = {}

    @torch.inference_mode()
    def run(self, ids: Tensor, position: int, num_logits: int) -> Scores:
        """One pass of ids of shape [tokens], the first of which stands at `position`."""
        visible = min(max(LEAST_VISIBLE, 1 << (position + len(ids) - 1).bit_length()), self._limit)
        if visible > self.capacity:
            self.capacity = visible
            self._columns = torch.arange(visible, device=self._device)
            self._graphs.clear()  # they write to the buffers that are left behind
        self.visible = visible
        self._position.fill_(position)
        if not self._captures or len(ids) > WIDEST_GRAPH:
            return self._pass(ids, num_logits)
        key = (len(ids), num_logits, visible)
        if key not in self._graphs:
            try:
                self._graphs[key] = _Graph(lambda static: self._pass(static, num_logits), ids)
            except RuntimeError as error:
                logger.warning("CUDA graphs are off for this model, passes run kernel by kernel: %s", error)
                self._captures = False
                return self._pass(ids, num_logits)
        return self._graphs[key].replay(ids)

    def _pass(self, ids: Tensor, num_logits: int) -> Scores:
        self.slots = self._position + self._columns[: len(ids)]
        mask = self._columns[None, : self.visible] <= self.slots[:, None]
        output = self._hf(
            input_ids=ids[None],
            position_ids=self.slots[None],
            attention_mask=mask[None, None],
            use_cache=True,
            logits_to_keep=num_logits,
            **self._cache_argument,
        )
        return Scores.of(output.logits[0])


class _Graph:
    """A captured pass."""

    def __init__(self, run: Any, ids: Tensor) -> None:
        self._ids = ids.clone()
        side = torch.cuda.Stream(ids.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(ids.device))
        with torch.cuda.stream(side):
            for _ in range(2):  # libraries choose kernels and allocate workspaces on first calls
                run(self._ids)
        torch.cuda.current_stream(ids.device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._scores = run(self._ids)

    def replay(self, ids: Tensor) -> Scores:
        """Runs the pass on other ids; logits are valid until the next replay, signals and tokens for good."""
        self._ids.copy_(ids)
        self._graph.replay()
        return Scores(self._scores.logits, self._scores.signals.clone(), self._scores.best.clone())


class StaticSequence:
    """A token sequence in fixed buffers; drop-in for `CachedSequence`.

    The buffers belong to the model and are taken again once a sequence is gone, with the graphs captured on them.
    """

    def __init__(self, model: "CausalModel") -> None:
        self._model = model
        self._room = model.spare_rooms.pop() if model.spare_rooms else _Room(model)
        weakref.finalize(self, model.spare_rooms.append, self._room)
        self.length = 0

    def extend(self, tokens: Sequence[int] | Tensor, *, num_logits: int | None = None) -> Tensor:
        """Appends tokens and returns logits; see `CachedSequence.extend`."""
        return self.score(tokens, num_logits=num_logits).logits

    def score(self, tokens: Sequence[int] | Tensor, *, num_logits: int | None = None) -> Scores:
        """Appends tokens and scores what follows the last `num_logits` of them, all of them by default.

        Raises:
            BudgetError: if the model's context would overflow.
        """
        ids = token_tensor(tokens, self._model.device)
        self._model.require_context(self.length + len(ids))
        scores = self._room.run(ids, self.length, len(ids) if num_logits is None else num_logits)
        self.length += len(ids)
        return scores

    def truncate(self, length: int) -> None:
        """Forgets every token past `length`: its slots are masked, and written over later."""
        self.length = min(self.length, length)
