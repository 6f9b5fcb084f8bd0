# SPDX-License-Identifier: Apache-2.0
"""Frames of a replayed request: its decode steps over time, beside plain decoding and the best fixed gamma."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from speckv.cost import CostTable
from speckv.evaluation.plots import GREY, INK, PALETTE, figure_text, tidy, timeline
from speckv.evaluation.replays import compile_pair, tune_fixed
from speckv.replay import ReplayStep, StepLog, replay_fixed
from speckv.traces import TraceSet

Pixels = NDArray[np.uint8]

WIDTH, HEIGHT = 800, 480
"""Of a frame, in pixels."""
_DPI = 100
_COUNTS = ("num_drafted", "num_accepted", "num_emitted")


class Frames:
    """Collects the decode steps of one request and draws them.

    Args:
        budget: Token budget of the environment.
        compared: Whether other ways to decode the same text are drawn; not where acceptances are drawn anew.
    """

    def __init__(self, traces: TraceSet, cost: CostTable, *, budget: int, compared: bool) -> None:
        self._traces, self._cost, self._budget, self._compared = traces, cost, budget, compared
        self._sequence = 0
        self._steps: list[dict[str, float]] = []
        self._present: dict[str, float] = {}

    @cached_property
    def _best_fixed(self) -> Mapping[str, int]:
        return tune_fixed(self._traces, self._cost).best()

    def start(self, sequence: int) -> None:
        """Begins a request, given by its index in the traces."""
        self._sequence = sequence
        self._steps = []
        self._present = dict.fromkeys((*_COUNTS, "seconds"), 0.0)

    def add(self, step: ReplayStep) -> None:
        """Adds an action of the first slot; one that emits tokens ends a decode step."""
        for name in self._present:
            self._present[name] += float(getattr(step, name)[0])
        if self._present["num_emitted"]:
            self._steps.append(self._present)
            self._present = dict.fromkeys(self._present, 0.0)

    def draw(self, status: str) -> Pixels:
        """Shape [HEIGHT, WIDTH, 3]; `status` is a line of text above the picture."""
        figure = Figure(figsize=(WIDTH / _DPI, HEIGHT / _DPI), dpi=_DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        timeline(upper, self._log(), status)
        upper.set_xlabel("")
        upper.legend(loc="upper right", ncols=3, fontsize=8, frameon=False)
        low, high = upper.get_ylim()
        upper.set_ylim(low, high + 0.25 * (high - low))
        self._draw_progress(lower)
        canvas.draw()  # type: ignore[no-untyped-call]
        pixels: Pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
        return pixels

    def _log(self) -> StepLog:
        counts = {name: np.array([int(step[name]) for step in self._steps], np.int64) for name in _COUNTS}
        number = len(self._steps)
        return StepLog(
            sequence=np.zeros(number, np.int64),
            position=np.cumsum(counts["num_emitted"]) + 1 - counts["num_emitted"],
            gamma=counts["num_drafted"],
            seconds=np.array([step["seconds"] for step in self._steps]),
            **counts,
        )

    def _draw_progress(self, ax: Axes) -> None:
        sequence = self._traces.sequences[self._sequence]
        lines = [("this episode", PALETTE[0], self._log())]
        if self._compared:
            one = self._traces.select(prompt_ids=[sequence.prompt_id], compressions=[sequence.compression])
            pair = compile_pair(one, self._cost)
            best = self._best_fixed[sequence.compression]
            for label, color, gamma in ((f"best fixed gamma, {best}", PALETTE[1], best), ("plain decoding", GREY, 0)):
                log = replay_fixed(*pair, gamma, budget=self._budget, log=True).log
                assert log is not None
                lines.append((label, color, log))
        for label, color, log in lines:
            seconds = np.concatenate([[0.0], np.cumsum(log.seconds)])
            tokens = np.concatenate([[1], 1 + np.cumsum(log.num_emitted)])
            ax.step(seconds, tokens, where="post", color=color, linewidth=1.6, label=figure_text(label))
        ax.set_xlim(left=0)
        ax.set_ylim(0, min(len(sequence.tokens), self._budget) * 1.05)
        ax.set_xlabel("decode time (s), from the cost table", color=INK)
        ax.set_ylabel("tokens emitted")
        ax.grid(color="#E3E3E3", linewidth=0.8)
        ax.legend(loc="lower right", fontsize=8, frameon=False)
        tidy(ax)
