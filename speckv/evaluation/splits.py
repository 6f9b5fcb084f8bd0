# SPDX-License-Identifier: Apache-2.0
"""What train and test prompts must have in common, checked before anything is trained or compared."""

import logging
from dataclasses import replace

from speckv.errors import TraceError
from speckv.traces import TraceSet

logger = logging.getLogger(__name__)


def with_decode_steps(traces: TraceSet) -> TraceSet:
    """Leaves out texts of one token, which prefill emits: they have no decode step. Logs how many they are.

    Raises:
        TraceError: if no text is left.
    """
    kept = tuple(s for s in traces.sequences if len(s.tokens) > 1)
    if not kept:
        raise TraceError(
            f"Expected a text of two tokens or more, got {len(traces.sequences)} texts of one, which have no decode "
            "step. Record longer texts."
        )
    number = len(traces.sequences) - len(kept)
    if number:
        gone = sorted(set(traces.compressions) - {s.compression for s in kept})
        whole = f"; nothing is left at {', '.join(gone)}" if gone else ""
        logger.warning("Left out %d texts of one token, which have no decode step%s.", number, whole)
    return replace(traces, sequences=kept) if number else traces


def require_decode_steps(traces: TraceSet, compressions: tuple[str, ...], use: str, advice: str) -> None:
    """Passes if there is a decode step at each of these compressions.

    Args:
        traces: Recordings.
        compressions: Names.
        use: Begins the message: what the recordings are, such as "train prompts".
        advice: Ends the message.

    Raises:
        TraceError: naming the compressions without one.
    """
    present = {s.compression for s in traces.sequences if len(s.tokens) > 1}
    if missing := sorted(set(compressions) - present):
        raise TraceError(f"Expected {use} with decode steps at {sorted(compressions)}, got none at {missing}. {advice}")


def require_comparable(train: TraceSet, test: TraceSet) -> None:
    """Passes if controllers that are tuned on some recordings can be compared on others.

    Raises:
        TraceError: if a tested compression has no decode step on either side, a prompt is on both, or the recordings
            are of unlike depth.
    """
    advice = "Record them, or leave that compression out with data.compressions."
    require_decode_steps(train, test.compressions, "train prompts", advice)
    require_decode_steps(test, test.compressions, "test prompts", advice)
    if shared := set(train.prompt_ids) & set(test.prompt_ids):
        raise TraceError(f"Expected disjoint prompts, but {sorted(shared)[:3]} are in train and test. Split by prompt.")
    if train.metadata.gamma_max != test.metadata.gamma_max:
        raise TraceError(
            f"Expected train and test prompts of one recorded depth, got gamma_max {train.metadata.gamma_max} and "
            f"{test.metadata.gamma_max}. Record both alike."
        )
