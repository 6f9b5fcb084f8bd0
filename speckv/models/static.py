# SPDX-License-Identifier: Apache-2.0
"""A sequence in buffers that never move, so that CUDA graphs can replay whole passes.

A pass of a few tokens through a small model is hundreds of kernels, each shorter than its launch; captured once per
width, it is one launch. Only ids and position change between replays; slots and mask follow on the device. All but the
capture runs on a CPU too, where the tests compare it with the growing cache.
"""

import functools
import gc
import logging
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from speckv.models.cache import BufferLayer, Slots, cache_keyword, exported
from speckv.models.device import token_tensor, without_plans
from speckv.models.signals import Scores

if TYPE_CHECKING:
    from speckv.models.causal import CausalModel

logger = logging.getLogger(__name__)
Pass = Callable[[Tensor], Scores]
"""Ids [tokens] -> scores; everything else that it reads or writes has a fixed address."""

WIDEST_GRAPH = 20
"""A draft of 16, the newest token, and some to catch up; prompts are wider."""

WIDEST_PASS = 2048
"""Tokens of a prompt that are read at once, which bounds the mask."""

FIRST_CAPACITY = 4096
"""Tokens that buffers hold at first, if the context allows it; they double when they must."""

LEAST_VISIBLE = 256
"""Attention runs over a power of two of slots, at least these."""


class StaticSequence:
    """Drop-in for `CachedSequence`; the model reuses its buffers and graphs once it is dropped."""

    def __init__(self, model: "CausalModel") -> None:
        self._model = model
        try:
            self._buffers: _StaticBuffers = model.spare_buffers.pop()
        except IndexError:  # none, or another thread took the last one
            self._buffers = _StaticBuffers(model)
        else:
            self._buffers.blank()
        weakref.finalize(self, _give_back, self._buffers, model.spare_buffers)
        self.length = 0

    def extend(self, tokens: Sequence[int] | Tensor, *, num_logits: int | None = None) -> Tensor:
        """Appends tokens and returns a copy of the logits; see `CachedSequence.extend`."""
        return self.score(tokens, num_logits=num_logits).logits.clone()

    def score(self, tokens: Sequence[int] | Tensor, *, num_logits: int | None = None) -> Scores:
        """Appends tokens and scores what follows the last ones; logits are valid until the sequence's next pass."""
        ids = token_tensor(tokens, self._model.device)
        wanted = len(ids) if num_logits is None else num_logits
        self._model.require_context(self.length + len(ids))
        prompt = self.length == 0
        with self._failures_noted():
            while len(ids) > max(wanted, WIDEST_PASS):
                piece = ids[: min(WIDEST_PASS, len(ids) - wanted)]
                self._buffers.run(piece, self.length, 1, once=True)
                self.length += len(piece)
                ids = ids[len(piece) :]
            scores = self._buffers.run(ids, self.length, wanted, once=prompt)
        self.length += len(ids)
        return scores

    def exported(self) -> DynamicCache:
        """A copy of the cache in transformers' own layers."""
        return exported(self._model.hf, self._buffers.cache, self.length)

    def capture_ahead(self, longest: int, widths: Sequence[int], *, all_logits: bool) -> None:
        """On CUDA, captures passes for texts of up to `longest` tokens, to score every token or the last.

        The sequence must be empty.
        """
        with self._failures_noted():
            self._buffers.capture_ahead(longest, widths, all_logits=all_logits)

    @contextmanager
    def _failures_noted(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._buffers.failed = True
            raise

    def truncate(self, length: int) -> None:
        """Removes every token past `length` by masking its slots."""
        self.length = min(self.length, length)


def _give_back(buffers: "_StaticBuffers", spare: list[Any]) -> None:
    if not buffers.failed:
        spare.append(buffers)


class _StaticBuffers:
    """Not used again once a pass `failed`: its buffers may be of several sizes then."""

    def __init__(self, model: "CausalModel") -> None:
        self._hf, self._device = model.hf, model.device
        self._limit = model.context_limit
        self.failed = False
        self._capacity = min(FIRST_CAPACITY, model.context_limit)
        self._position = torch.zeros(1, dtype=torch.long, device=self._device)
        self._columns = torch.arange(self._capacity, device=self._device)
        cache = DynamicCache(config=model.hf.config)
        self._layers = [BufferLayer() for _ in cache.layers]  # type: ignore[no-untyped-call]
        layers: list[Any] = [*self._layers]
        cache.layers = layers
        self.cache = cache
        self._cache_argument: dict[str, Any] = {cache_keyword(model.hf): cache}
        self._graphs = PassGraphs(model.graph_faults) if model.replays_graphs else None

    @torch.inference_mode()
    def blank(self) -> None:
        """Leaves nothing of the last sequence: a NaN has an effect through any mask."""
        for layer in self._layers:
            layer.blank()

    @torch.inference_mode()
    def run(self, ids: Tensor, position: int, num_logits: int, *, once: bool = False) -> Scores:
        visible = self._visible(position + len(ids))
        if visible > self._capacity:
            self._capacity = visible
            self._columns = torch.arange(visible, device=self._device)
            if self._graphs is not None:
                self._graphs.clear()  # they write to the buffers that are left behind
        self._position.fill_(position)
        if self._graphs is None or once or len(ids) > WIDEST_GRAPH:
            return self._pass(ids, num_logits, visible)
        key = (len(ids), num_logits, visible)
        return self._graphs.run(key, lambda static: self._pass(static, num_logits, visible), ids)

    def capture_ahead(self, longest: int, widths: Sequence[int], *, all_logits: bool) -> None:
        for visible in self._sizes(longest):
            for width in sorted((width for width in widths if width < visible), reverse=True):
                if self._graphs is None or self._graphs.faults:
                    return
                ids = torch.zeros(width, dtype=torch.long, device=self._device)
                self.run(ids, visible - width, width if all_logits else 1)

    def _visible(self, length: int) -> int:
        return min(max(LEAST_VISIBLE, 1 << (length - 1).bit_length()), self._limit)

    def _sizes(self, longest: int) -> Iterator[int]:
        """The largest first, so that buffers grow once."""
        size = self._visible(longest)
        yield size
        while size > self._visible(1):
            size = self._visible((size + 1) // 2)
            yield size

    def _pass(self, ids: Tensor, num_logits: int, visible: int) -> Scores:
        positions = self._position + self._columns[: len(ids)]
        mask = self._columns[None, :visible] <= positions[:, None]
        slots = Slots(capacity=self._capacity, positions=positions, span=visible)
        for layer in self._layers:
            layer.slots = slots
        with without_plans(self._device):
            output = self._hf(
                input_ids=ids[None],
                position_ids=positions[None],
                attention_mask=mask[None, None],
                use_cache=True,
                logits_to_keep=num_logits,
                **self._cache_argument,
            )
        return Scores.of(output.logits[0])


class PassGraphs:
    """Captured passes on one set of buffers, with one memory pool; logits are valid until the next replay of any.

    After an error of a capture, which is added to `faults`, passes run kernel by kernel.
    """

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        self._held: dict[Hashable, _Graph] = {}
        self._pool: Any = None

    def clear(self) -> None:
        """Drops all graphs, because the buffers have moved."""
        self._held.clear()
        self._pool = None  # a pool that no graph holds any more cannot be shared again

    def run(self, key: Hashable, run: Pass, ids: Tensor) -> Scores:
        """Replays a pass, captured first if need be; out of memory in a capture raises."""
        if key not in self._held and not self._capture(key, run, ids):
            return run(ids)
        return self._held[key].replay(ids)

    def _capture(self, key: Hashable, run: Pass, ids: Tensor) -> bool:
        if self.faults:
            return False
        pool = self._pool if self._held else torch.cuda.graph_pool_handle()
        try:
            self._held[key] = _Graph(run, ids, pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.faults.append(" ".join(str(error).split())[:300])
            logger.warning("CUDA graphs are off for this model, passes run kernel by kernel: %s", self.faults[-1])
            return False
        self._pool = pool
        return True


class _Graph:
    def __init__(self, run: Pass, ids: Tensor, pool: Any) -> None:
        self._ids = ids.clone()
        side, current = _side_stream(ids.device), torch.cuda.current_stream(ids.device)
        side.wait_stream(current)
        # Both contexts: a stream is captured on the current device, which need not be the model's.
        try:
            with torch.cuda.device(ids.device), torch.cuda.stream(side):
                run(self._ids)  # libraries choose kernels on first calls
                with _waiting_refused():
                    run(self._ids)
                self._graph = torch.cuda.CUDAGraph()
                with _own_workspaces(), _no_collection(), torch.cuda.graph(self._graph, pool=pool, stream=side):
                    self._scores = run(self._ids)
        finally:
            current.wait_stream(side)  # what failed half-way may still be writing

    def replay(self, ids: Tensor) -> Scores:
        """Logits are valid until the pool's next replay, signals and tokens for good."""
        self._ids.copy_(ids)
        self._graph.replay()
        return Scores(self._scores.logits, self._scores.signals.clone(), self._scores.best.clone())


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def _waiting_refused() -> Iterator[None]:
    """Makes a wait for the device raise: a capture would raise too, but leave the allocator unusable."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Synchronization debug mode")  # that it is a prototype
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Makes cuBLAS take its workspaces from the memory that is captured into, as Inductor does.

    cuBLAS would keep one per stream for all graphs, and PyTorch frees it with the first graph (pytorch/pytorch#193402).
    """
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)
    clear()
    try:
        yield
    finally:
        clear()


@contextmanager
def _no_collection() -> Iterator[None]:
    """A graph that the garbage collector destroyed meanwhile would break the capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
