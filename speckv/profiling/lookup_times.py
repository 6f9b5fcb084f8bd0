# SPDX-License-Identifier: Apache-2.0
"""Times what a lookup takes to read tokens and propose one: microseconds, so many proposals make one timing."""

import time
from collections.abc import Sequence

import numpy as np

from speckv.decoding.prompt_lookup import LookupDrafter, PromptLookup
from speckv.profiling.pass_times import PassTimes, TimingPlan, summarise

LOOKUPS = 50
"""Proposals a timing."""
PHRASE = 64
"""Tokens after which the text that is looked up in says the same again, but for some."""
CHANGED = 0.1
"""Share of them."""


def time_lookup(lookup: PromptLookup, plan: TimingPlan) -> PassTimes:
    """Times a proposal by how many tokens are read before it.

    Args:
        lookup: Its lengths of a match.
        plan: Contexts, widths and rounds.

    Returns:
        What it takes to read the tokens, to look, to make the tensors that the engine takes, and to forget it all.
    """
    near = _rounds(lookup, plan, plan.widths, plan.reference_context)
    far = _rounds(lookup, plan, plan.anchors, plan.far_context)
    return summarise(near, far, plan)


def _rounds(lookup: PromptLookup, plan: TimingPlan, widths: Sequence[int], context: int) -> dict[int, list[float]]:
    """Width -> median seconds of one proposal, one a round."""
    text = _repetitive(context + max(widths), lookup.vocab_size)
    drafter = LookupDrafter(lookup)
    drafter.read(text[:context])
    seconds: dict[int, list[float]] = {width: [] for width in widths}
    for number in range(plan.warmups + plan.repeats):
        for width in widths:
            unread = text[context : context + width]
            rounds = [_propose(drafter, unread, context) for _ in range(LOOKUPS)]
            if number >= plan.warmups:
                seconds[width].append(float(np.median(rounds)))
    return seconds


def _propose(drafter: LookupDrafter, unread: list[int], context: int) -> float:
    started = time.perf_counter()
    if drafter.can_propose(unread):
        drafter.propose((), 0)
    drafter.truncate(context)  # as after every step
    return time.perf_counter() - started


def _repetitive(length: int, vocab_size: int) -> list[int]:
    rng = np.random.default_rng(0)
    text = np.resize(rng.integers(0, vocab_size, PHRASE), length)
    changed = rng.random(length) < CHANGED
    return [int(token) for token in np.where(changed, rng.integers(0, vocab_size, length), text)]
