# SPDX-License-Identifier: Apache-2.0
"""Test vectors: scripted requests with the decisions that a policy took on them.

They travel with a policy and are played again whenever it is loaded, so that a file, a NumPy or a port to another
language that would decide otherwise is found out before it decides anything.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from speckv.runtime.session import Session

NUM_REQUESTS = 5
NUM_STEPS = 10
"""A request."""
_DIGITS = 4

Script = Sequence[Mapping[str, Any]]
"""One entry a request: `compression`, `start`, `max_new_tokens`, and `steps`. A step has the `draft`'s signals at every
token that might be drafted, how many of them the target would keep (`acceptable`), its signals at the `target`'s newest
token, and the `seconds` it takes."""


def make_script(compressions: Sequence[str], *, depth: int, seed: int = 0) -> Script:
    """Draws requests: easy and hard ones, some of whose steps break off.

    Args:
        compressions: Of the targets, in turn.
        depth: Deepest draft.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    return [
        {
            "compression": compressions[number % len(compressions)],
            "max_new_tokens": 64,
            "start": _rounded(_signals(rng, 1, 0.8)[0, :2]),
            "steps": [_step(rng, depth, ease) for _ in range(NUM_STEPS)],
        }
        for number, ease in enumerate(rng.uniform(0.3, 0.98, max(NUM_REQUESTS, len(compressions))).tolist())
    ]


def _step(rng: np.random.Generator, depth: int, ease: float) -> Mapping[str, Any]:
    draft = _signals(rng, depth, ease)
    kept = rng.random(depth) < draft[:, 1]
    return {
        "draft": [_rounded(row) for row in draft],
        "acceptable": depth if kept.all() else int(kept.argmin()),
        "target": _rounded(_signals(rng, 1, ease)[0, :2]),
        "seconds": round(float(rng.uniform(0.01, 0.2)), _DIGITS),
    }


def _signals(rng: np.random.Generator, number: int, ease: float) -> Any:
    confidence = rng.beta(4 * ease, 4 * (1 - ease), number).clip(0.02, 1.0)
    entropy = -3.0 * np.log(confidence) * rng.uniform(0.3, 1.0, number)
    margin = np.maximum(confidence - (1 - confidence) * rng.uniform(0, 1, number), 0.0)
    return np.stack([entropy, confidence, margin], axis=1)


def _rounded(values: Any) -> list[float]:
    return [round(float(value), _DIGITS) for value in values]


def play(script: Script, session: Callable[..., Session]) -> list[list[list[int]]]:
    """Plays requests one after the other.

    Args:
        script: See `Script`.
        session: Opens a session; given `compression` and `max_new_tokens`.

    Returns:
        For each request, for each of its steps: what `begin_step` said, and how many tokens were drafted.
    """
    return [_request(request, session) for request in script]


def _request(request: Mapping[str, Any], session: Callable[..., Session]) -> list[list[int]]:
    running = session(compression=request["compression"], max_new_tokens=request["max_new_tokens"])
    running.start(*request["start"])
    decided = []
    for step in request["steps"]:
        gamma, drafted = running.begin_step(), 0
        more = gamma > 0
        while more:
            more = running.go_on(*step["draft"][drafted])
            drafted += 1
        decided.append([gamma, drafted])
        accepted = min(drafted, int(step["acceptable"]))
        running.end_step(accepted, *step["target"], seconds=step["seconds"])
    return decided
