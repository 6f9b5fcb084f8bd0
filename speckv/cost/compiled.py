# SPDX-License-Identifier: Apache-2.0
"""A cost table as arrays, for steps of many sequences at once."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from speckv.cost.entry import CostEntry, Seconds
from speckv.cost.table import CostTable
from speckv.types import IntArray

_LEAST_TABULATED = 512
"""Draft widths that `CompiledCost` looks up at least; wider catch-ups are extrapolated on the fly."""

_FAR_CONTEXT = 1024.0


class CompiledCost:
    """A cost table as arrays, for steps of many sequences at once.

    Attributes:
        compressions: What a compression index points into.
        cost_ratio: Shape [compressions].
        reference_autoregressive_s: Shape [compressions]; plain decoding at the reference context, seconds a token.
        reference_draft_s: Shape [compressions]; a draft pass of width 1 at the reference context.
        controller_s: The table's.
        reads_prompt_late: Whether some request's first draft waits for the draft model to read the prompt.
    """

    def __init__(self, table: CostTable, compressions: Sequence[str], *, gamma_max: int = 16) -> None:
        """Tabulates the times at every integer width.

        Args:
            table: The times.
            compressions: In the order that compression indices refer to.
            gamma_max: Most tokens that a step may draft.

        Raises:
            CostTableError: if the table lacks one of them.
        """
        table.require(compressions)
        self.name = table.name
        self.compressions = tuple(compressions)
        self.gamma_max = gamma_max
        self.controller_s = table.controller_s
        entries = [table.entries[name] for name in self.compressions]
        self.cost_ratio = np.array([table.cost_ratio(name) for name in self.compressions])
        self.reference_autoregressive_s = np.array([e.verify_s[0] for e in entries])
        self.reference_draft_s = np.array([e.draft_s[0] for e in entries])
        # Times are linear in the context: seconds = at_zero + slope * context. Column k of `_rest` holds everything of
        # a step with k drafts but its first draft pass; column w of `_first` that pass at width w, nothing at w = 0.
        rest = [_linear(partial(_rest_of_step, e, gamma_max)) for e in entries]
        self._width_limit = max(_LEAST_TABULATED, *(e.draft_widths[-1] + 1 for e in entries))
        widths = np.arange(1, self._width_limit + 1)
        first = [_linear(partial(e.draft_pass_s, widths)) for e in entries]
        self._rest_at_zero, self._rest_slope = (np.stack(part).ravel() for part in zip(*rest, strict=True))
        self._first_at_zero, self._first_slope = (
            np.pad(np.stack(part), ((0, 0), (1, 0))).ravel() for part in zip(*first, strict=True)
        )
        # The last two tabulated widths lie at or beyond every last measured one, where times are linear in the width.
        self._prompt = np.array([e.draft_prompt_s for e in entries])
        self.reads_prompt_late = bool(self._prompt.any())
        self._tail = np.array([float(np.diff(e.draft_pass_s(widths[-2:], 0.0))[0]) for e in entries])

    def step_seconds(self, comp_index: IntArray, num_drafted: IntArray, lag: IntArray, context: IntArray) -> Seconds:
        """Seconds of one decode step for each row, the controller's left out.

        Args:
            comp_index: Shape [N]; index into `compressions`.
            num_drafted: Shape [N]; 0 to gamma_max.
            lag: Shape [N]; emitted tokens missing from the draft's cache, the newest one not counted.
            context: Shape [N]; prompt tokens plus tokens emitted before the step.
        """
        seconds = self.rest_seconds(comp_index, num_drafted, context)
        seconds += self._first(comp_index, (lag + 1) * (num_drafted > 0), context)
        return seconds

    def rest_seconds(self, comp_index: IntArray, num_drafted: IntArray, context: IntArray) -> Seconds:
        """Seconds of a decode step without its first draft pass: what does not depend on the draft's lag."""
        column = comp_index * (self.gamma_max + 1) + num_drafted
        seconds: Seconds = self._rest_slope[column]
        seconds *= context
        seconds += self._rest_at_zero[column]
        return seconds

    def first_pass_seconds(self, comp_index: IntArray, lag: IntArray, context: IntArray) -> Seconds:
        """Seconds of a step's first draft pass, which reads the newest token and those the draft lags behind."""
        return self._first(comp_index, lag + 1, context)

    def prompt_seconds(self, comp_index: IntArray, prompt_len: IntArray) -> Seconds:
        """Seconds that a request's first draft pass takes besides, to read the prompt; nothing where it was read."""
        seconds: Seconds = self._prompt[comp_index] * prompt_len
        return seconds

    def _first(self, comp_index: IntArray, width: IntArray, context: IntArray) -> Seconds:
        beyond = None
        if width.max(initial=0) > self._width_limit:
            beyond = np.maximum(width - self._width_limit, 0)
            width = width - beyond
        column = comp_index * (self._width_limit + 1) + width
        seconds: Seconds = self._first_slope[column]
        seconds *= context
        seconds += self._first_at_zero[column]
        if beyond is not None:
            seconds += self._tail[comp_index] * beyond
        return seconds

    def autoregressive_s(self, comp_index: IntArray, context: IntArray) -> Seconds:
        """Seconds that plain decoding takes for one token, for each row."""
        return self.rest_seconds(comp_index, np.zeros_like(comp_index), context)


def _rest_of_step(entry: CostEntry, gamma_max: int, context: float) -> Seconds:
    drafted = np.arange(gamma_max + 1)
    further = np.maximum(drafted - 1, 0) * entry.draft_pass_s(1, context)
    return np.asarray(further + entry.verify_pass_s(drafted + 1, context), np.float64)


def _linear(time: Callable[[float], Seconds]) -> tuple[Seconds, Seconds]:
    at_zero = time(0.0)
    return at_zero, (time(_FAR_CONTEXT) - at_zero) / _FAR_CONTEXT
