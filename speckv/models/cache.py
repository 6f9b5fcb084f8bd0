# SPDX-License-Identifier: Apache-2.0
"""A key-value cache that appends in place: transformers' own copies everything it holds at every pass."""

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

SPARE_TOKENS = 64
"""Room that is added whenever a layer must grow."""


class GrowingLayer(DynamicLayer):
    """Keys and values as views of buffers with room behind them; cutting back and going on reuses that room."""

    _key_room: Tensor | None = None
    _value_room: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Appends states of shape [batch, heads, tokens, dim] and returns all that are held."""
        del args, kwargs
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        assert self.keys is not None
        assert self.values is not None
        self._key_room, self.keys = _append(self._key_room, self.keys, used, key_states)
        self._value_room, self.values = _append(self._value_room, self.values, used, value_states)
        return self.keys, self.values

    def reset(self) -> None:
        """Holds nothing any more, and no room either."""
        super().reset()
        self._key_room = self._value_room = None


def _append(room: Tensor | None, held: Tensor, used: int, new: Tensor) -> tuple[Tensor, Tensor]:
    """Writes `new` behind the `used` tokens of `held`, in its buffer if it has one with room; returns buffer, view."""
    needed = used + new.shape[-2]
    # Selecting rows leaves `held` in memory of its own: the buffer is then no longer its own either.
    owned = room is not None and room.shape[0] == new.shape[0] and (not used or held.data_ptr() == room.data_ptr())
    if room is None or not owned or room.shape[-2] < needed:
        room = new.new_empty((*new.shape[:-2], needed + SPARE_TOKENS, new.shape[-1]))
        if used:
            room[..., :used, :] = held
    room[..., used:needed, :] = new
    return room, room[..., :needed, :]


def cache_keyword(model: nn.Module) -> str:
    """What a model calls its key-value cache: `cache` since transformers 5.24, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def special_layers(model: nn.Module) -> list[str]:
    """Kinds of a model's cache layers that do not hold every token, such as sliding windows, by name."""
    config: Any = model.config
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return sorted(kind.__name__ for kind in kinds - {DynamicLayer})


def growing_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty cache for a model; layers of a special kind (sliding windows and others) stay transformers' own."""
    cache = DynamicCache(config=config)
    layers: list[Any] = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]  # type: ignore[no-untyped-call]
    cache.layers = layers
    return cache
