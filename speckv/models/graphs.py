# SPDX-License-Identifier: Apache-2.0
"""Whole passes of a model captured as CUDA graphs."""

import functools
import gc
import logging
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from speckv.models.signals import Scores

logger = logging.getLogger(__name__)
Pass = Callable[[Tensor], Scores]
"""Ids of shape [tokens] -> scores; all else that it reads or writes stays where it is."""


class PassGraphs:
    """The captured passes on one set of buffers, by key; they share one memory pool, and run one after the other.

    Memory that one frees within itself may hold the result of another: logits are valid until the next replay of any.

    Args:
        faults: Why passes of this model could not be captured. What is found here is added; with any, nothing is
            captured, and passes run kernel by kernel.
    """

    def __init__(self, faults: list[str]) -> None:
        self._faults = faults
        self._held: dict[Hashable, _Graph] = {}
        self._pool: Any = None

    @property
    def faulty(self) -> bool:
        """Whether nothing is captured any more."""
        return bool(self._faults)

    def clear(self) -> None:
        """Drops all of them: the buffers have moved."""
        self._held.clear()
        self._pool = None  # a pool that no graph holds any more cannot be shared again

    def run(self, key: Hashable, run: Pass, ids: Tensor) -> Scores:
        """Replays a pass on ids of shape [tokens], captured first where it has not been.

        Args:
            key: Of everything that shapes the pass.
            run: The pass.
            ids: On the device.

        Raises:
            torch.OutOfMemoryError: which says nothing about whether the pass can be captured.
        """
        if key not in self._held and not self._capture(key, run, ids):
            return run(ids)
        return self._held[key].replay(ids)

    def _capture(self, key: Hashable, run: Pass, ids: Tensor) -> bool:
        if self._faults:
            return False
        pool = self._pool if self._held else torch.cuda.graph_pool_handle()
        try:
            self._held[key] = _Graph(run, ids, pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._faults.append(" ".join(str(error).split())[:300])
            logger.warning("CUDA graphs are off for this model, passes run kernel by kernel: %s", self._faults[-1])
            return False
        self._pool = pool
        return True


class _Graph:
    """A captured pass."""

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
        """Runs the pass on other ids; logits are valid until the pool's next replay, signals and tokens for good."""
        self._ids.copy_(ids)
        self._graph.replay()
        return Scores(self._scores.logits, self._scores.signals.clone(), self._scores.best.clone())


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of a device that passes are captured on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def _waiting_refused() -> Iterator[None]:
    """Lets whatever waits for the device raise, which a capture would too, but leave the allocator unusable."""
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
    """Lets cuBLAS take its workspaces from the memory that is captured into.

    A graph holds their addresses. cuBLAS would keep one a stream for all graphs captured there, and PyTorch frees it
    with the first of them that goes (pytorch/pytorch#193402). Inductor's graphs are captured in the same way.
    """
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)
    clear()
    try:
        yield
    finally:
        clear()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps the garbage collector out: a graph that it found dead and destroyed would break the capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
