# SPDX-License-Identifier: Apache-2.0
"""transformers' logits processors in speculative decoding, also those that keep state from call to call."""

import copy
import functools
import threading
import types
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedTokenizerBase
from transformers.generation import logits_process as known

from speckv.errors import ConfigError

LogitsProcessorLike = Callable[..., Any]
"""Ids of a text [1, tokens] and scores [1, vocabulary] -> scores."""

ROW_WISE: frozenset[type] = frozenset(
    {
        known.EpsilonLogitsWarper,
        known.InfNanRemoveLogitsProcessor,
        known.LogitNormalization,
        known.MinPLogitsWarper,
        known.SuppressTokensLogitsProcessor,
        known.TemperatureLogitsWarper,
        known.TopKLogitsWarper,
    }
)
"""Neither read the text nor keep state, so that all rows of a verification are processed in one call."""

STATELESS: frozenset[type] = ROW_WISE | {
    known.EncoderNoRepeatNGramLogitsProcessor,
    known.EncoderRepetitionPenaltyLogitsProcessor,
    known.EtaLogitsWarper,
    known.ExponentialDecayLengthPenalty,
    known.ForcedBOSTokenLogitsProcessor,
    known.ForcedEOSTokenLogitsProcessor,
    known.MinLengthLogitsProcessor,
    known.MinNewTokensLengthLogitsProcessor,
    known.NoBadWordsLogitsProcessor,
    known.NoRepeatNGramLogitsProcessor,
    known.PrefixConstrainedLogitsProcessor,
    known.RepetitionPenaltyLogitsProcessor,
    known.SequenceBiasLogitsProcessor,
    known.SuppressTokensAtBeginLogitsProcessor,
    known.TopHLogitsWarper,
    known.TopPLogitsWarper,
    known.TypicalLogitsWarper,
    known.WatermarkLogitsProcessor,  # seeds its generator anew from the text at each call
}
"""Scores depend on text and given scores alone. For `prefix_allowed_tokens_fn` this is assumed."""


class Processors:
    """Logits processors along a speculative text, each called once per emitted token in order, as by `generate`.

    Drafts and verifications use copies if any keeps state, so that rejected tokens leave it unchanged. `beside` are
    objects that may share state with the processors, such as stopping criteria, but for those of `stateless` classes.

    Raises:
        ConfigError: for classifier-free guidance, and for a processor that cannot be deep-copied.
    """

    def __init__(
        self,
        processors: Sequence[LogitsProcessorLike],
        *,
        beside: Sequence[object] = (),
        stateless: Iterable[type] = (),
    ) -> None:
        self._live = LogitsProcessorList(_flat(processors))
        require_no_guidance(self._live)
        self._copier = Copier([*self._live, *beside], STATELESS.union(stateless))
        self.stateful = any(self._copier.copied[: len(self._live)])
        self._drafting = self._verifying = self._live
        self._rows: list[tuple[Tensor, Tensor]] = []

    @staticmethod
    def of(processors: Sequence[LogitsProcessorLike]) -> "Processors | None":
        """None where there are no processors."""
        return Processors(processors) if len(processors) else None

    def begin_draft(self) -> None:
        """Prepares a draft from the state after the emitted text."""
        if self.stateful:
            self._drafting = LogitsProcessorList(self._copier.copies(len(self._live)))

    def draft(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Processes a copy of the draft's scores [1, vocabulary] after `ids` [1, tokens], position by position."""
        return _process(self._drafting, ids, scores)

    def verify(self, prefix: Tensor, drafted: Tensor, scores: Tensor) -> Tensor:
        """Processes a copy of the target's scores [drafted + 1, vocabulary], which follow `prefix` and `drafted`."""
        text = torch.cat([prefix, drafted[None].to(prefix)], dim=1)
        if all(type(processor) in ROW_WISE for processor in self._live):
            return _process(self._live, text, scores)
        self.begin_verify()
        lengths = range(prefix.shape[1], text.shape[1] + 1)
        rows = [self.verify_row(text[:, :length], scores[i : i + 1]) for i, length in enumerate(lengths)]
        return torch.cat(rows)

    def begin_verify(self) -> list[object]:
        """Prepares a verification row by row; returns copies of `beside` for it."""
        self._rows.clear()
        copies = self._copier.copies()
        self._verifying = LogitsProcessorList(copies[: len(self._live)])
        return copies[len(self._live) :]

    def verify_row(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Processes the target's scores of the next position; see `draft`."""
        if self.stateful:
            self._rows.append((ids, scores.clone()))
        return _process(self._verifying, ids, scores)

    def commit(self, num_emitted: int) -> None:
        """Advances past the first rows of the last verification."""
        for row in range(num_emitted):
            self.commit_row(row)

    def commit_row(self, row: int) -> None:
        """Advances past one row of the last verification; rows come in order."""
        if self.stateful:
            _process(self._live, *self._rows[row])


def require_no_guidance(processors: Iterable[LogitsProcessorLike]) -> None:
    """Raises ConfigError for classifier-free guidance, which runs the model again at each token."""
    for processor in processors:
        if isinstance(processor, known.UnbatchedClassifierFreeGuidanceLogitsProcessor):
            raise ConfigError(
                "Expected generate without classifier-free guidance, got guidance_scale="
                f"{processor.guidance_scale}. It runs the target once more for each token, one token after the other, "
                "and so cannot verify a draft. Leave guidance_scale out, or use plain generate."
            )


def _process(processors: LogitsProcessorList, ids: Tensor, scores: Tensor) -> Tensor:
    """Gives each processor a copy of the scores if it changes them in place."""
    own = all(type(processor) in STATELESS for processor in processors)
    processed: Tensor = processors(ids, scores if own else scores.clone())  # type: ignore[arg-type]
    return processed


def _flat(processors: Iterable[LogitsProcessorLike]) -> Iterable[LogitsProcessorLike]:
    for processor in processors:
        if isinstance(processor, LogitsProcessorList):
            yield from _flat(processor)
        else:
            yield processor


_SHARED = (torch.nn.Module, PreTrainedTokenizerBase, type(threading.Lock()), type(threading.RLock()))
"""Large, or not copyable, and without state that belongs to one text."""
_LEAVES = (type, types.ModuleType, torch.Tensor, str, bytes, int, float, complex, type(None))


class Copier:
    """Copies objects that may keep state; state that two objects share is shared by their copies.

    Models, tokenizers and locks are shared with the originals, and `stateless` classes, by exact type, are not copied.
    Of a function, the variables of its closure and its defaults are copied. ConfigError if an object cannot be
    deep-copied.
    """

    def __init__(self, objects: Sequence[object], stateless: Collection[type]) -> None:
        self._objects = tuple(objects)
        self.copied = tuple(type(item) not in stateless for item in self._objects)
        self._shared = _shared([item for item, copied in zip(self._objects, self.copied, strict=True) if copied])
        self.copied = tuple(new is not old for new, old in zip(self.copies(), self._objects, strict=True))

    def copies(self, number: int | None = None) -> list[object]:
        """Copies of the first `number` objects, by default all."""
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
    """Copies a function with its variables, which `copy.deepcopy` does not."""
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
