# SPDX-License-Identifier: Apache-2.0
"""Layers of key-value caches that append in place and can be cut back, and checks of a model's own cache.

transformers' own cache copies everything at every pass; its sliding windows can be cut back only to the last cut.
"""

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DummyLayer, DynamicIndexedLayer, DynamicLayer, DynamicSlidingWindowLayer

from speckv.errors import ModelError
from speckv.models.parts import unwrapped

SPARE_TOKENS = 64
ROLLBACK_TOKENS = 256
"""Tokens that a window layer keeps beyond its window, so that it can be cut back by as many."""


class GrowingLayer(DynamicLayer):
    """Keys and values as views of buffers with spare room."""

    keys: Any
    values: Any
    _key_room: Tensor | None = None
    _value_room: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Appends states [batch, heads, tokens, dim] and returns all."""
        del args, kwargs
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._key_room, self.keys = _append(self._key_room, self.keys, key_states)
        self._value_room, self.values = _append(self._value_room, self.values, value_states)
        return self.keys, self.values

    def reset(self) -> None:
        """Empties the layer and frees its buffers."""
        super().reset()
        self._key_room = self._value_room = None


class GrowingWindowLayer(GrowingLayer):
    """A layer with a sliding window, the reading token included; `num_dropped` tokens were read and dropped."""

    is_sliding = True

    def __init__(self, sliding_window: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sliding_window = sliding_window
        self.num_dropped = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Appends states [batch, heads, tokens, dim] and returns those that the new tokens attend to."""
        del args, kwargs
        num_new = key_states.shape[-2]
        room, kept = self._key_room, self.sliding_window - 1 + ROLLBACK_TOKENS
        if room is not None and self._num_held + num_new > room.shape[-2] and self._num_held > kept:
            self.num_dropped += self._num_held - kept
            self.keys, self.values = self.keys[..., -kept:, :], self.values[..., -kept:, :]
        super().update(key_states, value_states)
        visible = self.sliding_window - 1 + num_new
        return self.keys[..., -visible:, :], self.values[..., -visible:, :]

    @property
    def _num_held(self) -> int:
        return 0 if not self.is_initialized or self.keys is None else self.keys.shape[-2]

    def get_seq_length(self) -> int:
        """Tokens read, dropped ones included."""
        return self.num_dropped + self._num_held

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number and first position of the tokens that a pass attends to."""
        length = self.get_seq_length()
        return min(length, self.sliding_window - 1) + query_length, max(length - self.sliding_window + 1, 0)

    def get_max_length(self) -> int:
        """Tokens of the window."""
        return self.sliding_window

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the newest `-tokens_to_remove` tokens; ModelError if the window would then need dropped ones."""
        left = self._num_held + tokens_to_remove
        if self.num_dropped and left < self.sliding_window - 1:
            raise ModelError(
                f"Expected a sliding window to be cut back by at most {self._num_held - self.sliding_window + 1} "
                f"tokens, got {-tokens_to_remove}. Start the sequence again."
            )
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        """Empties the layer and frees its buffers."""
        super().reset()
        self.num_dropped = 0


def _append(room: Tensor | None, held: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    used = held.shape[-2] if held.numel() else 0
    needed = used + new.shape[-2]
    # Selecting rows or dropping tokens leaves `held` elsewhere than at the buffer's start.
    owned = room is not None and room.shape[0] == new.shape[0] and (not used or held.data_ptr() == room.data_ptr())
    if room is None or not owned or room.shape[-2] < needed:
        room = new.new_empty((*new.shape[:-2], needed + SPARE_TOKENS, new.shape[-1]))
        if used:
            room[..., :used, :] = held
    room[..., used:needed, :] = new
    return room, room[..., :needed, :]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """The slots, one a token, that a pass writes and reads in every layer.

    Attributes:
        capacity: Slots that each row must have.
        positions: Slots that are written: shape [batch, width], or [width] for a single row.
        span: Slots that are read.
        rows: Shape [batch]; rows that take part. None for a single row.
        leading: Whether the rows are the first ones in order, so that reading needs no copy.
    """

    capacity: int
    positions: Tensor
    span: int
    num_rows: int = 1
    rows: Tensor | None = None
    leading: bool = True


class BufferLayer(DynamicLayer):
    """Keys and values [rows, heads, capacity, dim]; the caller's mask hides slots past the end of a text."""

    slots: Slots
    keys: Any
    values: Any

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes states [batch, heads, width, dim] and returns the slots that the pass reads."""
        del args, kwargs
        self.is_initialized = True
        self.keys, keys = self._write(self.keys, key_states)
        self.values, values = self._write(self.values, value_states)
        return keys, values

    def _write(self, room: Tensor | None, states: Tensor) -> tuple[Tensor, Tensor]:
        now = self.slots
        if room is None or room.shape[0] < now.num_rows or room.shape[2] < now.capacity:
            # Zeros, because weights of zero still multiply what is hidden, and memory may hold NaN.
            larger = states.new_zeros(now.num_rows, states.shape[1], now.capacity, states.shape[3])
            if room is not None:
                larger[: room.shape[0], :, : room.shape[2]] = room
            room = larger
        if now.rows is None:
            room.index_copy_(2, now.positions, states)
            return room, room[:, :, : now.span]
        room[now.rows[:, None], :, now.positions] = states.transpose(1, 2)
        held = room[:, :, : now.span]
        return room, held[: len(now.rows)] if now.leading else held.index_select(0, now.rows)

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` slots of one row to another."""
        for room in (self.keys, self.values):
            if room is not None:
                room[target, :, :length] = room[source, :, :length]

    def blank(self) -> None:
        """Zeroes the buffers in place: captured graphs hold their addresses."""
        for room in (self.keys, self.values):
            if room is not None:
                room.zero_()


def cache_keyword(model: nn.Module) -> str:
    """Name of a model's key-value cache argument: `cache` since transformers 5.24, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(unwrapped(model).forward).parameters else "past_key_values"


def window_sizes(model: nn.Module) -> list[int | None]:
    """Sliding window of each cache layer, in tokens; None for full attention."""
    return [getattr(layer, "sliding_window", None) for layer in _transformers_layers(model)]


def has_special_layers(model: nn.Module) -> bool:
    """Whether some layer has no full attention, or caches more than keys and values."""
    return any(type(layer) is not DynamicLayer for layer in _transformers_layers(model))


def require_rollback(model: nn.Module, name: str) -> None:
    """Raises ModelError if rejected tokens cannot be removed from a model's cache, as with a recurrent state."""
    inner = unwrapped(model)
    kinds = {type(layer) for layer in _transformers_layers(model)}
    known = {DynamicLayer, DynamicSlidingWindowLayer, DynamicIndexedLayer, DummyLayer}
    unknown = sorted(kind.__name__ for kind in kinds - known)
    parameters = inspect.signature(inner.forward).parameters
    if getattr(inner, "_is_stateful", False) and not unknown:
        unknown = ["a recurrent state"]
    if not unknown and not {"cache", "past_key_values"} & set(parameters):
        unknown = ["no key-value cache"]
    if unknown:
        raise ModelError(
            f"Expected a model whose layers keep keys and values of tokens, which can be cut back after a rejection; "
            f"{name} keeps {', '.join(unknown)}. Models with recurrent or convolution layers cannot be used here as "
            "target or draft: choose one with attention layers alone."
        )


def growing_cache(model: nn.Module) -> DynamicCache:
    """An empty cache for a model that passes `require_rollback`."""
    config: Any = model.config
    cache = DynamicCache(config=config)
    layers: list[Any] = [_growing(layer) for layer in cache.layers]
    cache.layers = layers
    return cache


def exported(model: nn.Module, cache: DynamicCache, length: int) -> DynamicCache:
    """A copy of the first `length` tokens of a cache in transformers' own layers."""
    config: Any = model.config
    copy = DynamicCache(config=config)
    for index, (held, layer) in enumerate(zip(cache.layers, copy.layers, strict=True)):
        source: Any = held
        target: Any = layer
        if not getattr(source, "is_initialized", False) or source.keys is None:
            continue
        begin = getattr(source, "num_dropped", 0)
        copy.update(*(part[..., : length - begin, :].clone() for part in (source.keys, source.values)), index)
        if hasattr(target, "cumulative_length"):
            target.cumulative_length = length
    return copy


def _growing(layer: Any) -> Any:
    if type(layer) is DynamicLayer:
        return GrowingLayer()  # type: ignore[no-untyped-call]
    if type(layer) is DynamicSlidingWindowLayer:
        return GrowingWindowLayer(layer.sliding_window)
    return layer


def _transformers_layers(model: nn.Module) -> list[Any]:
    config: Any = model.config
    return list(DynamicCache(config=config).layers)
