# SPDX-License-Identifier: Apache-2.0
"""How far a draft goes from each position of a recorded text."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from speckv.traces import NO_TOKEN
from speckv.types import GAMMA_MAX


def draft_stops(
    tokens: NDArray[np.int32],
    draft_tokens: NDArray[np.int32],
    rollout_start: NDArray[np.int16],
    rollout_tokens: NDArray[np.int32],
    eos_token_ids: Iterable[int],
) -> NDArray[np.int8]:
    """Tokens drafted from each position up to and including the first end of text, or until nothing is proposed.

    Args:
        tokens: As all of the following, a column of `TraceSequence`.
        draft_tokens: The proposals along the text.
        rollout_start: Where they are wrong.
        rollout_tokens: How each wrong one goes on.
        eos_token_ids: Tokens that end a text.

    Returns:
        Shape [n]; gamma_max where neither comes, or the recording ends before.
    """
    ends = np.array([*eos_token_ids, NO_TOKEN])
    on_path = np.isin(draft_tokens, ends)
    row_of = {int(start): row for row, start in enumerate(rollout_start)}
    off_path = np.isin(rollout_tokens, ends)
    stops = np.full(len(tokens), GAMMA_MAX, np.int8)
    for start in range(len(tokens)):
        for depth in range(min(GAMMA_MAX, len(tokens) - start)):
            position = start + depth
            if on_path[position]:
                stops[start] = depth + (draft_tokens[position] != NO_TOKEN)
                break
            if draft_tokens[position] != tokens[position]:
                row = row_of[position]
                later = np.flatnonzero(off_path[row, : GAMMA_MAX - depth - 1])
                if len(later):
                    stops[start] = depth + 1 + later[0] + (rollout_tokens[row, later[0]] != NO_TOKEN)
                break
    return stops
