# SPDX-License-Identifier: Apache-2.0
"""Deep copies of a user's objects, made as one group, without the models and tokenizers that they hold."""

import copy
import functools
import threading
import types
from collections import deque
from collections.abc import Collection, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from speckv.errors import ConfigError

_SHARED = (torch.nn.Module, PreTrainedTokenizerBase, type(threading.Lock()), type(threading.RLock()))
"""Large, or not copyable, and without state that belongs to one text."""
_LEAVES = (type, types.FunctionType, types.ModuleType, torch.Tensor, str, bytes, int, float, complex, type(None))


class Copier:
    """Copies objects that may keep state, so that a copy can be used and dropped.

    State that two of the objects share is shared by their copies too. Models, tokenizers and locks inside the objects
    are shared with the originals.

    Args:
        objects: Logits processors or stopping criteria.
        stateless: Classes without state, by exact type; such objects are used as they are.

    Attributes:
        copied: Whether each object is copied. False also where its `__deepcopy__` returns the object itself.

    Raises:
        ConfigError: if an object cannot be deep-copied.
    """

    def __init__(self, objects: Sequence[object], stateless: Collection[type]) -> None:
        self._objects = tuple(objects)
        self.copied = tuple(type(item) not in stateless for item in self._objects)
        self._shared = _shared([item for item, copied in zip(self._objects, self.copied, strict=True) if copied])
        self.copied = tuple(new is not old for new, old in zip(self.copies(), self._objects, strict=True))

    def copies(self, number: int | None = None) -> list[object]:
        """Copies of the objects in their present state, in order; objects without state are returned as they are.

        Args:
            number: Only of so many, from the first on.
        """
        memo = dict(self._shared)
        pairs = list(zip(self._objects, self.copied, strict=True))[:number]
        return [_copy(item, memo) if copied else item for item, copied in pairs]


def _copy(item: object, memo: dict[int, object]) -> object:
    try:
        return copy.deepcopy(item, memo)
    except Exception as error:  # whatever the user's class raises
        name = type(item).__name__
        raise ConfigError(
            f"Expected logits processors and stopping criteria whose state can be copied, because rejected tokens must "
            f"leave no trace in it, got {name}, for which copy.deepcopy raises {type(error).__name__}: {error}. "
            f"Give {name} a __deepcopy__ that returns self if it keeps no state from call to call, or leave it out."
        ) from error


def _shared(objects: Sequence[object]) -> dict[int, object]:
    """The models, tokenizers and locks that the objects hold, in the form of `copy.deepcopy`'s memo."""
    found: dict[int, object] = {}
    seen: dict[int, object] = {}  # holds what it lists, so that no id is used twice
    waiting = list(objects)
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, _LEAVES):
            continue
        seen[id(item)] = item
        if isinstance(item, _SHARED):
            found[id(item)] = item
        else:
            waiting += _parts(item)
    return found


def _parts(item: object) -> list[object]:
    """The objects directly inside one."""
    if isinstance(item, types.MethodType):
        return [item.__self__]
    parts: list[object] = list(getattr(item, "__dict__", {}).values())
    for base in type(item).__mro__:
        names = base.__dict__.get("__slots__", ())
        parts += [getattr(item, name, None) for name in ((names,) if isinstance(names, str) else names)]
    if isinstance(item, dict):
        parts += [*item.keys(), *item.values()]
    elif isinstance(item, list | tuple | set | frozenset | deque):
        parts += item
    elif isinstance(item, functools.partial):
        parts += [item.func, *item.args, *item.keywords.values()]
    return parts
