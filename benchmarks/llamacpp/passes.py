# SPDX-License-Identifier: Apache-2.0
"""Times single passes of a pair of `Llama` objects, as drafting and verification run them."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from speckv.errors import ConfigError
from speckv.integrations.llama_cpp import LlamaDraft
from speckv.profiling.timing import PassTimes, TimingPlan, summarise
from speckv.runtime.signals import signals_of_logits

Job = tuple[str, int, int]
"""Role, context and width of a pass, in tokens."""


def time_pair(target: Any, draft: Any, plan: TimingPlan, say: Callable[[str], None]) -> tuple[PassTimes, PassTimes]:
    """Times of draft passes and of verify passes.

    Every round times every width of both models at the reference context, then a few at the far one, so that a slow
    moment falls on all alike. A draft pass reads tokens, chooses one and computes its signals. A verify pass reads
    tokens, copies all their logits, chooses one token and computes the target's signals at it; choosing takes as long
    once more for each further token that is emitted, with or without a draft, and is not in the table.

    Args:
        target: Keeps the logits of all tokens.
        draft: Whatever it keeps.
        plan: Contexts, widths and rounds.
        say: Called with a line a round.

    Returns:
        Of the draft, and of the target.

    Raises:
        ConfigError: if the far context does not fit.
    """
    longest = plan.far_context + plan.widths[-1]
    if longest > min(target.n_ctx(), draft.n_ctx()):
        raise ConfigError(f"Expected contexts of at least {longest} tokens, got {target.n_ctx()} and {draft.n_ctx()}.")
    text = np.random.default_rng(0).integers(0, min(target.n_vocab(), 50_000), longest).astype(np.intc)
    drafter = LlamaDraft(llama_cpp, draft)
    passes: dict[str, tuple[Any, Callable[[int, int], float]]] = {
        "draft": (draft, lambda context, width: _draft_pass(drafter, text[: context + width], context)),
        "verify": (target, lambda context, width: _verify_pass(target, text[: context + width].tolist(), context)),
    }
    seconds: dict[Job, list[float]] = defaultdict(list)
    for number in range(plan.warmups + plan.repeats):
        say(f"round {number + 1} of {plan.warmups + plan.repeats}")
        for context, widths in ((plan.reference_context, plan.widths), (plan.far_context, plan.anchors)):
            for role, (llama, run) in passes.items():
                _read(llama, text[:context].tolist())
                for width in widths:
                    taken = run(context, width)
                    if number >= plan.warmups:
                        seconds[role, context, width].append(taken)
    draft_times, verify_times = (_summary(seconds, role, plan) for role in passes)
    return draft_times, verify_times


def time_prompt(draft: Any, plan: TimingPlan) -> float:
    """Median seconds that the draft takes for each token of a prompt, read at once behind nothing."""
    text = np.random.default_rng(1).integers(0, min(draft.n_vocab(), 50_000), plan.reference_context).tolist()
    seconds = []
    for _ in range(plan.warmups + plan.repeats):
        draft.reset()
        started = time.perf_counter()
        draft.eval(text)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[plan.warmups :])) / len(text)


def _summary(seconds: dict[Job, list[float]], role: str, plan: TimingPlan) -> PassTimes:
    near = {width: seconds[role, plan.reference_context, width] for width in plan.widths}
    return summarise(near, {width: seconds[role, plan.far_context, width] for width in plan.anchors}, plan)


def _read(llama: Any, text: list[int]) -> None:
    """Brings the cache to a text, which begins as what is in it does."""
    llama.n_tokens = min(llama.n_tokens, len(text))
    if unread := text[llama.n_tokens :]:
        llama.eval(unread)


def _draft_pass(drafter: LlamaDraft, text: NDArray[np.intc], context: int) -> float:
    drafter.llama.n_tokens = context
    started = time.perf_counter()
    drafter.read(text)
    drafter.propose(signals=True)
    return time.perf_counter() - started


def _verify_pass(target: Any, text: list[int], context: int) -> float:
    target.n_tokens = context
    started = time.perf_counter()
    target.eval(text[context:])
    target.sample(temp=0.0, top_k=1, idx=context)
    signals_of_logits(target.scores[context])
    return time.perf_counter() - started
