# SPDX-License-Identifier: Apache-2.0
"""Methods of one target that are replaced while a `control` block runs, in any number of threads.

Each block belongs to the context (`contextvars`) that entered it, which is that of its thread or asyncio task. A call
of `generate` in a context without a block belongs to the only block that is open, as where a thread is started inside
a block to stream its text. Where several are open, such a call is transformers' own.
"""

import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from transformers import PreTrainedModel
from transformers.generation.candidate_generator import CandidateGenerator

from speckv.errors import ConfigError

CANDIDATES, CRITERIA, MODE = "_get_candidate_generator", "_get_stopping_criteria", "_validate_generation_mode"
NEEDS = {
    CANDIDATES: {"generation_config", "input_ids", "logits_processor", "assistant_model"},
    CRITERIA: {"generation_config", "stopping_criteria"},
    MODE: {"generation_mode_kwargs"},
}
"""Replaced method -> parameters that are relied on; transformers 5.23 and 5.24 have them."""
_HOOKS = "_speckv_hooks"
_ENTERED: ContextVar[tuple[object, ...]] = ContextVar("speckv_control", default=())


class Block(ABC):
    """What the replaced methods do in one context."""

    elsewhere: int = 0
    """Calls of `generate` on the target in contexts without a block, while this one was open."""

    @abstractmethod
    def drafts_with(self, assistant: Any) -> bool:
        """Whether a model is the block's draft."""

    def is_here(self) -> bool:
        """Whether the calling context is inside the block."""
        return any(block is self for block in _ENTERED.get())

    @abstractmethod
    def candidates(self, arguments: dict[str, Any]) -> CandidateGenerator:
        """Returns what drafts in one call of `generate`.

        Args:
            arguments: Of transformers' method, by name.
        """

    @abstractmethod
    def criteria(self, arguments: dict[str, Any], found: Any) -> Any:
        """Returns the stopping criteria of one call of `generate`.

        Args:
            arguments: Of transformers' method, by name.
            found: What transformers' method returned.
        """

    @abstractmethod
    def mode_arguments(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the arguments of `generate` that transformers validates in the place of the given ones."""


@contextmanager
def hooked(target: PreTrainedModel, block: Block) -> Iterator[None]:
    """Replaces the target's methods for the calling context.

    Raises:
        ConfigError: if the context is inside another block for this target, or transformers lacks what is needed.
    """
    hooks = _enter(target, block)
    _ENTERED.set((*_ENTERED.get(), block))
    try:
        yield
    finally:
        _ENTERED.set(tuple(other for other in _ENTERED.get() if other is not block))
        hooks.leave(block)


def _enter(target: PreTrainedModel, block: Block) -> "Hooks":
    while True:
        found: Hooks | None = vars(target).get(_HOOKS)
        hooks = found or vars(target).setdefault(_HOOKS, Hooks(target))  # atomic: two threads get the same object
        if hooks.enter(block):
            return hooks


class Hooks:
    """The replaced methods of one target.

    They are kept on the target itself, so that copies of this module in exported folders find one another's.
    """

    def __init__(self, target: PreTrainedModel) -> None:
        self._target = target
        self._replaced: dict[str, Any] = {}
        self._blocks: list[Block] = []
        self._lock = threading.Lock()
        self._removed = False

    def __reduce__(self) -> "tuple[type[Hooks], tuple[PreTrainedModel]]":
        """A copy of the target, made inside a block, is under no control."""
        return Hooks, (self._target,)

    def enter(self, block: Block) -> bool:
        """Adds a block, unless the hooks have been removed meanwhile.

        Raises:
            ConfigError: see `hooked`.
        """
        with self._lock:
            if self._removed:
                return False
            try:
                if self._here() is not None:
                    raise ConfigError(
                        "Expected a target that no policy controls yet, got one inside another `control` block."
                    )
                self._require_known()
            except ConfigError:
                self._remove_if_unused()
                raise
            if not self._blocks:
                self._install()
            self._blocks.append(block)
            return True

    def _install(self) -> None:
        methods = {CANDIDATES: self.candidates, CRITERIA: self.criteria, MODE: self.mode}
        known = {name: vars(self._target).get(name) for name in methods}
        # On a copy of a target that was made inside a block, these methods are there already.
        self._replaced = {n: m for n, m in known.items() if m is not None and getattr(m, "__self__", None) is not self}
        vars(self._target).update(methods)

    def leave(self, block: Block) -> None:
        """Removes a block, and behind the last one the hooks."""
        with self._lock:
            self._blocks.remove(block)
            self._remove_if_unused()

    def candidates(self, *args: Any, **kwargs: Any) -> Any:
        """In the place of transformers' method."""
        block, arguments = self._block(), self._arguments(CANDIDATES, args, kwargs)
        if block is None or not (block.is_here() or block.drafts_with(arguments.get("assistant_model"))):
            return self._call(CANDIDATES, *args, **kwargs)
        return block.candidates(arguments)

    def criteria(self, *args: Any, **kwargs: Any) -> Any:
        """In the place of transformers' method."""
        block, found = self._block(), self._call(CRITERIA, *args, **kwargs)
        if block is None:
            for other in tuple(self._blocks):
                other.elsewhere += 1
            return found
        return block.criteria(self._arguments(CRITERIA, args, kwargs), found)

    def mode(self, *args: Any, **kwargs: Any) -> Any:
        """In the place of transformers' method."""
        block = self._block()
        if block is None:
            return self._call(MODE, *args, **kwargs)
        arguments = self._arguments(MODE, args, kwargs)
        arguments["generation_mode_kwargs"] = block.mode_arguments(arguments["generation_mode_kwargs"])
        return self._call(MODE, **arguments)

    def _here(self) -> Block | None:
        return next((block for block in tuple(self._blocks) if block.is_here()), None)

    def _block(self) -> Block | None:
        """The block of the calling context, or the only one there is."""
        blocks = tuple(self._blocks)
        return self._here() or (blocks[0] if len(blocks) == 1 else None)

    def _own(self, name: str) -> Any:
        """The target's method without the hooks; None where it has none."""
        method = getattr(type(self._target), name, None)
        return self._replaced.get(name) or (method and method.__get__(self._target))

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self._own(name)(*args, **kwargs)

    def _arguments(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return inspect.signature(self._own(name)).bind(*args, **kwargs).arguments

    def _require_known(self) -> None:
        for name, needed in NEEDS.items():
            method = self._own(name)
            found = inspect.signature(method).parameters if callable(method) else {}
            if missing := needed - set(found):
                raise ConfigError(
                    f"Expected transformers from 5.23, below 6: this version's {name} lacks {sorted(missing)}. "
                    "Use custom_generate=speckv.integrations.transformers.custom_generate."
                )

    def _remove_if_unused(self) -> None:
        if self._blocks:
            return
        for name in NEEDS:
            if getattr(vars(self._target).get(name), "__self__", None) is self:
                del vars(self._target)[name]
        vars(self._target).update(self._replaced)
        vars(self._target).pop(_HOOKS, None)
        self._removed = True
