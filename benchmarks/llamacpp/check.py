# SPDX-License-Identifier: Apache-2.0
"""Holds a cost table of llama-cpp-python to the wall clock of whole runs, predicted from their own steps' counts."""

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.llamacpp.models import ends
from speckv.cost import CostFit, CostTable
from speckv.integrations.llama_cpp import draft_model
from speckv.profiling.timing import RandomGamma, fit_of_runs
from speckv.runtime import Policy
from speckv.runtime.constant import ConstantGamma
from speckv.types import Controller


class Listener:
    """Wraps a drafter, and records when and after which text it was called.

    Attributes:
        first: When the first was.
        calls: Length of each text, and of its draft.
    """

    def __init__(self, drafter: Any) -> None:
        self._drafter = drafter
        self.first = 0.0
        self.calls: list[tuple[int, int]] = []

    def __call__(self, ids: Any) -> Any:
        """Hands on."""
        if not self.calls:
            self.first = time.perf_counter()
        draft = self._drafter(ids)
        self.calls.append((len(ids), len(draft)))
        return draft


def step_counts(calls: Sequence[tuple[int, int]]) -> tuple[list[int], list[int], list[int]]:
    """What `CostTable.step_seconds` takes: tokens drafted, the draft's lag, context.

    Args:
        calls: Length of the text before each step, and of its draft.
    """
    lags, lag = [], 0
    for number, (length, drafted) in enumerate(calls):
        lags.append(lag)
        if number + 1 < len(calls):
            accepted = calls[number + 1][0] - length - 1
            lag = int(accepted == drafted) if drafted else lag + 1
    lengths, drafts = zip(*calls, strict=True)
    return list(drafts), lags, list(lengths)


def check_pair(
    table: CostTable,
    compression: str,
    target: Any,
    draft: Any,
    prompts: Sequence[Sequence[int]],
    *,
    gammas: Sequence[int],
    max_new_tokens: int,
) -> CostFit:
    """Decodes every prompt with constants and a random schedule, in an order that rotates, and compares.

    The draft has read the prompt before the clock starts, because no pass over a prompt is in a table.

    Args:
        table: The times.
        compression: Its entry.
        target: Made with some drafter.
        draft: The draft model.
        prompts: Token ids.
        gammas: Constants.
        max_new_tokens: Token budget of a run.

    Raises:
        ConfigError: if no run took a decode step.
    """
    arms: list[Controller] = [*map(ConstantGamma, gammas), RandomGamma(max((*gammas, 1)))]
    predicted: list[float] = []
    measured: list[float] = []
    tokens = 0
    for number, prompt in enumerate(prompts):
        first = number % len(arms)
        for arm in arms[first:] + arms[:first]:
            listener, emitted, seconds = _run(arm, target, draft, prompt, max_new_tokens)
            if listener.calls:
                drafted, lags, contexts = step_counts(listener.calls)
                predicted.append(float(table.step_seconds(compression, drafted, lags, contexts).sum()))
                measured.append(seconds)
                tokens += emitted
    return fit_of_runs(predicted, measured, prompts=len(prompts), tokens=tokens)


def _run(
    arm: Controller, target: Any, draft: Any, prompt: Sequence[int], max_new_tokens: int
) -> tuple[Listener, int, float]:
    drafter = draft_model(Policy.of(arm), draft, max_new_tokens=max_new_tokens, signals=True)
    target.draft_model = drafter
    drafter.attach(target)
    target.draft_model = listener = Listener(drafter)
    draft.reset()
    draft.eval(list(prompt))
    target.reset()
    emitted = 0
    for token in target.generate(prompt, temp=0.0, top_k=1):
        emitted += 1
        if emitted == max_new_tokens or ends(target, token):
            break
    ended = time.perf_counter()
    return listener, emitted - 1, ended - listener.first  # the first token is the prompt's
