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
_LEAVES = (type, types.ModuleType, torch.Tensor, str, bytes, int, float, complex, type(None))


class Copier:
    """Copies objects that may keep state, so that a copy can be used and dropped.

    State that two of the objects share is shared by their copies too. Models, tokenizers and locks inside the objects
    are shared with the originals. Of a function, the variables of its closure and its defaults are copied.

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
        return _copy_function(item, memo) if isinstance(item, types.FunctionType) else copy.deepcopy(item, memo)
    except Exception as error:  # whatever the user's class raises
        name = getattr(item, "__name__", type(item).__name__)
        raise ConfigError(
            f"Expected logits processors and stopping criteria whose state can be copied, because rejected tokens must "
            f"leave no trace in it, got {name}, for which copy.deepcopy raises {type(error).__name__}: {error}. "
            "If it keeps no state from call to call, make it a class whose __deepcopy__ returns self; otherwise leave "
            "it out."
        ) from error


def _copy_function(function: types.FunctionType, memo: dict[int, object]) -> types.FunctionType:
    """A copy with variables of its own; the function itself where it has none, because `copy.deepcopy` copies none."""
    cells = function.__closure__ or ()
    if not cells and not function.__defaults__ and not function.__kwdefaults__:
        return function
    defaults = copy.deepcopy(function.__defaults__, memo)
    closure = tuple(_copy_cell(cell, memo) for cell in cells) or None
    copied = types.FunctionType(function.__code__, function.__globals__, function.__name__, defaults, closure)
    copied.__kwdefaults__ = copy.deepcopy(function.__kwdefaults__, memo)
    return copied


def _copy_cell(cell: types.CellType, memo: dict[int, object]) -> types.CellType:
    known = memo.get(id(cell))
    if isinstance(known, types.CellType):
        return known
    memo[id(cell)] = copied = types.CellType()
    for value in _contents(cell):
        copied.cell_contents = copy.deepcopy(value, memo)
    return copied


def _contents(cell: types.CellType) -> list[object]:
    try:
        return [cell.cell_contents]
    except ValueError:  # a variable that is not assigned yet
        return []


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
    if isinstance(item, types.FunctionType):
        held = [value for cell in item.__closure__ or () for value in _contents(cell)]
        return [*held, *(item.__defaults__ or ()), *(item.__kwdefaults__ or {}).values()]
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
